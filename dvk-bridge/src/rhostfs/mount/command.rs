//! `mount` as a program: from its command line to a directory, and until that is unmounted.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, thread};

use log::info;
use nix::sys::signal::{SigSet, Signal};

use super::args::{MountArgs, OwnerName, PermissionsName, ServerName};
use super::{Dialect, MountError, MountSession, Options, Owner};
use crate::abi::{DcId, DcLimits, NodeId};
use crate::carrier::local::{Local, LocalConfig, LocalError};
use crate::carrier::node::{Node, NodeConfig, NodeError};
use crate::cli_types::PeerName;
use crate::endpoint::Carrier;
use crate::server_addr::ServerAddr;

/// What is told when the directory is mounted.
const MOUNTED: &str = "mounted";

/// Why a directory was not mounted, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// This process cannot be a node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// There is no way to the switch.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Nothing says how.
    #[error("cannot reach a server without a peer and a node, or a switch")]
    NoServer,
    /// There is no mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The system refuses what the program needs.
    #[error("cannot {what}")]
    System {
        /// What it needs.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The process in the background has said what is wrong.
    #[error("the directory was not mounted")]
    Background,
}

/// Mounts the directory, and serves it until it is unmounted; or, if so told, leaves that to a process in the background.
///
/// To be called before any other thread is started.
///
/// # Errors
/// When the directory cannot be mounted, or not be served to the end.
pub fn run(args: &MountArgs) -> Result<(), CommandError> {
    if args.background {
        return run_in_background();
    }
    let signals = block_signals().map_err(|source| CommandError::System {
        what: "take over signals",
        source,
    })?;
    let server_addr = args
        .server_addr
        .server_addr()
        .ok_or(CommandError::NoServer)?;
    let session = MountSession::start(&options(args, server_addr), carrier(args, server_addr)?)?;
    let unmounter = session.unmounter();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                info!("{signal}: unmounting");
                unmounter.unmount();
            }
        })
        .map_err(|source| CommandError::System {
            what: "start a thread",
            source,
        })?;
    if args.tell {
        let mut out = io::stdout().lock();
        // Whoever wanted to know may have gone.
        let _ = writeln!(out, "{MOUNTED}").and_then(|()| out.flush());
    }
    Ok(session.run()?)
}

/// Starts this program once more without `--background`, and waits for what it tells.
fn run_in_background() -> Result<(), CommandError> {
    let failed = |source| CommandError::System {
        what: "start a process in the background",
        source,
    };
    let words = env::args_os().skip(1);
    let mut child = Command::new(env::current_exe().map_err(failed)?)
        .args(words.filter(|word| word != "--background"))
        .arg("--tell")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let mut told = String::new();
    if let Some(out) = child.stdout.take() {
        // Nothing is told when it ends without a mount.
        BufReader::new(out).read_line(&mut told).map_err(failed)?;
    }
    if told.trim_end() == MOUNTED {
        Ok(())
    } else {
        // It is about to end; it has said why itself.
        let _ = child.wait();
        Err(CommandError::Background)
    }
}

/// Keeps the signals that are to unmount from ending the process; so too in all threads that are started from now on.
fn block_signals() -> io::Result<SigSet> {
    let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    set.thread_block()?;
    Ok(set)
}

/// What takes messages to the server.
fn carrier(
    args: &MountArgs,
    server_addr: ServerAddr<'_>,
) -> Result<Box<dyn Carrier>, CommandError> {
    Ok(match server_addr {
        ServerAddr::Node(node, peer) => Box::new(Node::start(node_config(args, node, peer))?),
        ServerAddr::Switch(socket) => Box::new(Local::start(local_config(args, socket))?),
    })
}

fn local_config(args: &MountArgs, socket: &Path) -> LocalConfig {
    let config = args.server_addr.at_switch(socket, containers(args));
    LocalConfig {
        exchange: args.limit,
        answer: config.answer.min(args.limit),
        ..config
    }
}

fn node_config(args: &MountArgs, node: NodeId, server: &PeerName) -> NodeConfig {
    let known = (args.dc, args.endpoint);
    let mut config = args
        .server_addr
        .as_node(node, server, known, containers(args));
    config.limits.exchange = args.limit;
    config
}

fn containers(args: &MountArgs) -> HashMap<DcId, DcLimits> {
    [(args.dc, DcLimits::USUAL)].into()
}

fn options(args: &MountArgs, server_addr: ServerAddr<'_>) -> Options {
    let server = match server_addr {
        ServerAddr::Node(_, peer) => format!("{}:{}", peer.host, peer.node),
        ServerAddr::Switch(socket) => socket.display().to_string(),
    };
    Options {
        mountpoint: args.mountpoint.clone(),
        source: format!("{server}:{}", args.endpoint),
        dc: args.dc,
        client: args.client(),
        server: args.endpoint,
        limit: args.limit,
        dialect: match args.server {
            ServerName::Ours => Dialect::Ours,
            ServerName::Original => Dialect::Original,
        },
        owner: match args.owner {
            OwnerName::Caller => Owner::Caller,
            OwnerName::Server => Owner::Server,
        },
        cache_timeout: args.timeout,
        local_permissions: args.permissions == PermissionsName::Local,
        read_only: args.read_only,
    }
}
