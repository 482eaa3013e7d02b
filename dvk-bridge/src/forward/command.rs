//! `forward` as a program: from its command line to an endpoint, and until it is ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use super::args::ForwardArgs;
use super::forwarder::Forward;
use crate::abi::DcLimits;
use crate::carrier::device::{Device, DeviceError};
use crate::carrier::local::{Local, LocalError};
use crate::carrier::node::{Node, NodeError};
use crate::endpoint::{Carrier, EndpointError};
use crate::server_addr::ServerAddr;
use crate::status::{Report, StatusError, StatusServer};

/// Why nothing is passed on, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The kernel's DVK cannot be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The endpoint cannot be had.
    #[error(transparent)]
    Bind(EndpointError),
    /// This process cannot be a node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// There is no way to the switch.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// There is nowhere to tell the status.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// It is not said where the server is.
    #[error("nothing says where the server is: --peer and --node do, or --switch")]
    NoServer,
    /// The endpoint was taken away.
    #[error("the endpoint was taken away")]
    Unbound,
    /// The system refuses something.
    #[error("cannot {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Passes on what is asked of the endpoint, until SIGTERM or SIGINT.
///
/// # Errors
/// [`ForwardError`].
pub fn run(args: &ForwardArgs) -> Result<(), ForwardError> {
    // Before any thread is there, so that all of them leave the signals to the one that waits for them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| ForwardError::System {
            what: "take over signals",
            source: errno.into(),
        })?;
    let device = Arc::new(Device::open(&args.device)?);
    let here = device.bind(args.dc, args.endpoint, "forward");
    let here = here.map_err(ForwardError::Bind)?;
    let there = ServerCarrier::start(args, here.limits())?;
    let forward = Arc::new(Forward::new(here, there.carrier(), args.limit));
    let parts: Vec<Arc<dyn Report>> = vec![forward.clone(), device, there.report()];
    let status = args.status.as_ref();
    let status = status.map(|path| StatusServer::start(path, parts));
    let _status = status.transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    // Not joined: without a signal it waits for ever.
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Ok(signal) = signals.wait() {
                log::info!("{signal}: ending");
                stopped.store(true, Ordering::Relaxed);
            }
        })
        .map_err(|source| ForwardError::System {
            what: "start a thread",
            source,
        })?;
    log::info!(
        "endpoint {} of container {} is passed on to {}",
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

/// Where the server is.
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
                    let known = (args.dc, args.endpoint);
                    let config = args.server_addr.as_node(node, server, known, dcs);
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
