//! `forward` as a program: from its command line to its end.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use gangplank_sandbox::seccomp::Seccomp;

use super::args::ForwardArgs;
use super::forwarder::Forward;
use crate::abi::DcLimits;
use crate::carrier::device::{Device, DeviceError};
use crate::endpoint::{BoundEndpoint, Carrier, EndpointError};
use crate::sandbox::{self, Needs};
use crate::server_carrier::{ServerCarrier, ServerCarrierError};
use crate::status::{self, Report, StatusError, StatusServer};

/// Why `forward` did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The kernel's DVK is not available.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An endpoint cannot be bound.
    #[error(transparent)]
    Bind(EndpointError),
    /// The server cannot be reached from here.
    #[error(transparent)]
    Server(#[from] ServerCarrierError),
    /// The status socket cannot be created.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The program cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// An endpoint was taken away.
    #[error("an endpoint was removed")]
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

/// Passes on the requests to the endpoints until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`ForwardError`].
pub fn run(args: &ForwardArgs, seccomp: Seccomp) -> Result<(), ForwardError> {
    let signals = status::block_signals().map_err(|source| ForwardError::System {
        what: "take over signals",
        source,
    })?;
    let device = Arc::new(Device::open(&args.device)?);
    let listener = args.status.as_deref().map(status::listen).transpose()?;
    let endpoints = args.endpoints();
    // The peer is the only one, so it has the other endpoints as well.
    let server = (args.dc, endpoints.first());
    let needs_node = ServerCarrier::node(&args.server_addr, server, HashMap::new());
    let needs = Needs {
        sockets: args.status.iter().map(PathBuf::as_path).collect(),
        connects: true,
        node: needs_node.as_ref(),
        device: true,
        ..Needs::default()
    };
    sandbox::confine(seccomp, &needs)?;
    let here: Result<Vec<Arc<dyn BoundEndpoint>>, _> = endpoints
        .iter()
        .map(|endpoint| device.bind(args.dc, endpoint, "forward"))
        .collect();
    let here = here.map_err(ForwardError::Bind)?;
    let limits = here.first().map_or(DcLimits::USUAL, |here| here.limits());
    let there = ServerCarrier::start(
        &args.server_addr,
        server,
        HashMap::from([(args.dc, limits)]),
    )?;
    let forward = Arc::new(Forward::new(
        args.dc,
        endpoints,
        here,
        there.carrier(),
        args.limit,
    ));
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
        "forwarding {endpoints} of container {} to {}",
        args.dc,
        ServerCarrier::name(&args.server_addr)
    );
    let ended = forward.run(&stop);
    ended.map_err(|source| ForwardError::System {
        what: "start a thread for each endpoint",
        source,
    })?;
    if stop.load(Ordering::Relaxed) {
        Ok(())
    } else {
        Err(ForwardError::Unbound)
    }
}
