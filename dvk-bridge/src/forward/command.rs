//! `forward` as a program: from its command line to its end.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use gangplank_sandbox::seccomp::Seccomp;
use nix::sys::signal::{SigSet, Signal};

use super::args::ForwardArgs;
use super::forwarder::Forward;
use crate::abi::{DcId, DcLimits, NodeId};
use crate::carrier::device::{Device, DeviceError};
use crate::carrier::local::{Local, LocalError};
use crate::carrier::node::{Node, NodeConfig, NodeError};
use crate::cli_types::PeerName;
use crate::endpoint::{Carrier, EndpointError};
use crate::sandbox::{self, Needs};
use crate::server_addr::ServerAddr;
use crate::status::{self, Report, StatusError, StatusServer};

/// Why `forward` did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The kernel's DVK is not available.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The endpoint cannot be bound.
    #[error(transparent)]
    Bind(EndpointError),
    /// This process cannot be a node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The switch cannot be used.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The status socket cannot be created.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The program cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// The command line names no server.
    #[error("no server is given: use --peer and --node, or --switch")]
    NoServer,
    /// The endpoint was taken away.
    #[error("the endpoint was removed")]
    Unbound,
    /// The system refused an operation.
    #[error("cannot {what}")]
    System {
        /// The operation.
        what: &'static str,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

/// Passes on the requests to the endpoint until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`ForwardError`].
pub fn run(args: &ForwardArgs, seccomp: Seccomp) -> Result<(), ForwardError> {
    // Before any thread starts, so that all threads leave the signals to the one that waits for
    // them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1]);
    signals
        .thread_block()
        .map_err(|errno| ForwardError::System {
            what: "take over signals",
            source: errno.into(),
        })?;
    let device = Arc::new(Device::open(&args.device)?);
    let listener = args.status.as_deref().map(status::listen).transpose()?;
    let needs_node = match args.server_addr.server_addr() {
        Some(ServerAddr::Node(node, server)) => {
            Some(node_config(args, node, server, HashMap::new()))
        }
        _ => None,
    };
    let needs = Needs {
        sockets: args.status.iter().map(PathBuf::as_path).collect(),
        connects: true,
        node: needs_node.as_ref(),
        device: true,
        ..Needs::default()
    };
    sandbox::confine(seccomp, &needs)?;
    let here = device.bind(args.dc, args.endpoint, "forward");
    let here = here.map_err(ForwardError::Bind)?;
    let there = ServerCarrier::start(args, here.limits())?;
    let forward = Arc::new(Forward::new(here, there.carrier(), args.limit));
    let parts: Vec<Arc<dyn Report>> = vec![forward.clone(), device, there.report()];
    let status = args.status.as_ref().zip(listener);
    let status =
        status.map(|(path, listener)| StatusServer::start_at(path, listener, parts.clone()));
    let _status = status.transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    // Not joined: without a signal it waits for ever.
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Ok(signal) = status::await_end(&signals, &parts) {
                log::info!("{signal}: ending");
                stopped.store(true, Ordering::Relaxed);
            }
        })
        .map_err(|source| ForwardError::System {
            what: "start a thread",
            source,
        })?;
    log::info!(
        "forwarding endpoint {} of container {} to {}",
        args.endpoint,
        args.dc,
        there.name(args)
    );
    forward.run(&stop);
    if stop.load(Ordering::Relaxed) {
        Ok(())
    } else {
        Err(ForwardError::Unbound)
    }
}

/// The node that this program becomes.
fn node_config(
    args: &ForwardArgs,
    node: NodeId,
    server: &PeerName,
    dcs: HashMap<DcId, DcLimits>,
) -> NodeConfig {
    let known = (args.dc, args.endpoint);
    args.server_addr.as_node(node, server, known, dcs)
}

/// The carrier to the server.
enum ServerCarrier {
    Node(Arc<Node>),
    Switch(Arc<Local>),
}

impl ServerCarrier {
    fn start(args: &ForwardArgs, limits: DcLimits) -> Result<Self, ForwardError> {
        let dcs = [(args.dc, limits)].into();
        Ok(
            match args
                .server_addr
                .server_addr()
                .ok_or(ForwardError::NoServer)?
            {
                ServerAddr::Switch(socket) => Self::Switch(Arc::new(Local::start(
                    args.server_addr.at_switch(socket, dcs),
                )?)),
                ServerAddr::Node(node, server) => {
                    let config = node_config(args, node, server, dcs);
                    Self::Node(Arc::new(Node::start(config)?))
                }
            },
        )
    }

    fn carrier(&self) -> Arc<dyn Carrier> {
        match self {
            Self::Node(node) => node.clone(),
            Self::Switch(local) => local.clone(),
        }
    }

    fn report(&self) -> Arc<dyn Report> {
        match self {
            Self::Node(node) => node.clone(),
            Self::Switch(local) => local.clone(),
        }
    }

    fn name(&self, args: &ForwardArgs) -> String {
        match args.server_addr.server_addr() {
            Some(ServerAddr::Node(_, peer)) => format!("node {} at {}", peer.node, peer.host),
            Some(ServerAddr::Switch(socket)) => format!("the switch at {}", socket.display()),
            None => String::new(),
        }
    }
}
