//! `mount` as a program, from its command line to the end of the mount.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::{env, thread};

use gangplank_sandbox::seccomp::Seccomp;
use gangplank_service::logging;
use log::info;
use serde_json::{Value, json};

use super::args::{MountArgs, OwnerName, PermissionsName, ServerName};
use super::session::OpenMountpoint;
use super::{Dialect, MountError, MountSession, Options, Owner};
use crate::abi::{DcId, DcLimits, NodeId};
use crate::carrier::local::{Local, LocalConfig, LocalError};
use crate::carrier::node::{Node, NodeConfig, NodeError};
use crate::cli_types::PeerName;
use crate::sandbox::{self, Needs};
use crate::server_addr::ServerAddr;
use crate::server_carrier::ServerCarrier;
use crate::status::{self, Report};

/// The line that reports the mount.
const MOUNTED: &str = "mounted";

/// Why `mount` failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// This process cannot become a node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The switch cannot be used.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The program cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// The command line names no way to reach the server.
    #[error("no server is given: use --peer and --node, or --switch")]
    NoServer,
    /// The mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The system refused an operation.
    #[error("cannot {what}")]
    System {
        /// The operation.
        what: &'static str,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The background process failed, and has printed the reason.
    #[error("the directory was not mounted")]
    Background,
}

/// Mounts the directory and serves it until it is unmounted. With `--background`, a background
/// process serves it.
///
/// It must run before any other thread starts.
///
/// # Errors
///
/// [`CommandError`].
pub fn run(args: &MountArgs, seccomp: Seccomp) -> Result<(), CommandError> {
    if args.background {
        return run_in_background();
    }
    let signals = status::block_signals().map_err(|source| CommandError::System {
        what: "take over signals",
        source,
    })?;
    let server_addr = args
        .server_addr
        .server_addr()
        .ok_or(CommandError::NoServer)?;
    // A process in the background leaves the working directory, and connects again later.
    let socket;
    let server_addr = match server_addr {
        ServerAddr::Switch(path) => {
            socket = std::path::absolute(path).map_err(|source| CommandError::System {
                what: "find the switch's socket",
                source,
            })?;
            ServerAddr::Switch(&socket)
        }
        node => node,
    };
    let opened = OpenMountpoint::new(&args.mountpoint)?;
    let background = match args.tell {
        true => Some(Background::begin()?),
        false => None,
    };
    let node = match server_addr {
        ServerAddr::Node(node, peer) => Some(node_config(args, node, peer)),
        ServerAddr::Switch(_) => None,
    };
    let needs = Needs {
        connects: true,
        node: node.as_ref(),
        mount: true,
        ..Needs::default()
    };
    sandbox::confine(seccomp, &needs)?;
    let carrier = carrier(args, server_addr)?;
    let options = options(args, server_addr);
    let session = MountSession::start_at(&options, opened, carrier.carrier())?;
    let parts: Vec<Arc<dyn Report>> = vec![Arc::new(options), carrier.report()];
    sandbox::after_mounting(seccomp, &needs)?;
    let unmounter = session.unmounter();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            while let Ok(signal) = status::await_end(&signals, &parts) {
                info!("{signal}: unmounting");
                unmounter.unmount();
            }
        })
        .map_err(|source| CommandError::System {
            what: "start a thread",
            source,
        })?;
    if let Some(background) = background {
        background.tell()?;
    }
    Ok(session.run()?)
}

/// A background process: what it needs to let go of the terminal and the pipes of its parent.
struct Background {
    null: File,
}

impl Background {
    /// Leaves the session of the terminal and the working directory. Paths must be absolute from
    /// here on.
    fn begin() -> Result<Self, CommandError> {
        let failed = |source| CommandError::System {
            what: "become a process in the background",
            source,
        };
        // It fails only if the process leads a session already.
        let _ = rustix::process::setsid();
        env::set_current_dir("/").map_err(failed)?;
        let null = File::options().read(true).write(true).open("/dev/null");
        Ok(Self {
            null: null.map_err(failed)?,
        })
    }

    /// Reports the mount, and lets go of the standard streams: who reads them would wait for the
    /// end of the mount. The log goes to syslog from here on.
    fn tell(self) -> Result<(), CommandError> {
        let mut out = io::stdout().lock();
        // The reader may have exited.
        let _ = writeln!(out, "{MOUNTED}").and_then(|()| out.flush());
        logging::leave_stderr();
        let replaced = rustix::stdio::dup2_stdin(&self.null)
            .and_then(|()| rustix::stdio::dup2_stdout(&self.null))
            .and_then(|()| rustix::stdio::dup2_stderr(&self.null));
        replaced.map_err(|error| CommandError::System {
            what: "let go of the standard streams",
            source: error.into(),
        })
    }
}

/// Starts this program again without `--background`, and waits for its report.
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
        .spawn()
        .map_err(failed)?;
    let mut told = String::new();
    if let Some(out) = child.stdout.take() {
        // Without a mount, the process ends and prints nothing.
        BufReader::new(out).read_line(&mut told).map_err(failed)?;
    }
    if told.trim_end() == MOUNTED {
        Ok(())
    } else {
        // The process ends soon and has printed the reason itself.
        let _ = child.wait();
        Err(CommandError::Background)
    }
}

/// The carrier to the server.
fn carrier(args: &MountArgs, server_addr: ServerAddr<'_>) -> Result<ServerCarrier, CommandError> {
    Ok(match server_addr {
        ServerAddr::Node(node, peer) => {
            ServerCarrier::Node(Arc::new(Node::start(node_config(args, node, peer))?))
        }
        ServerAddr::Switch(socket) => {
            ServerCarrier::Switch(Arc::new(Local::start(local_config(args, socket))?))
        }
    })
}

impl Report for Options {
    fn report(&self, to: &mut String) {
        to.push_str(&format!(
            "mount of {} on {}\n",
            self.source,
            self.mountpoint.display()
        ));
    }

    fn json(&self) -> Value {
        json!({
            "kind": "mount",
            "source": self.source,
            "mountpoint": self.mountpoint.to_string_lossy(),
        })
    }
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
