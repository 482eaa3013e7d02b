//! `tunnel` as a program: from its command line to its end.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use gangplank_sandbox::seccomp::Seccomp;
use gangplank_service::peer_cred::PeerCred;
use gangplank_service::rate_limit::{self, set_thread_peer};
use gangplank_service::unix_listener::{BindError, OwnedListener};
use gangplank_service::{error_chain, rate_limited};
use log::info;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::args::TunnelArgs;
use super::serve::Shared;
use super::{Options, behind};
use crate::abi::{DcLimits, Endpoint};
use crate::endpoint::Carrier;
use crate::sandbox::{self, Needs};
use crate::server_carrier::{ServerCarrier, ServerCarrierError};
use crate::status::{self, Report, StatusError, StatusServer};

/// Why `tunnel` did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The socket for guests cannot be created.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The own endpoints are not in the container.
    #[error(
        "the endpoints {first} to {last} are not all in a container: choose others by \
         --client-endpoint"
    )]
    Endpoints {
        /// The first one.
        first: i32,
        /// The last one.
        last: i32,
    },
    /// The own endpoints are those of the server.
    #[error(
        "the own endpoints from {client} on are among those of the server from {server} on: choose \
         others by --client-endpoint"
    )]
    Overlap {
        /// The first of the tunnel.
        client: Endpoint,
        /// The first of the server.
        server: Endpoint,
    },
    /// The server cannot be reached from here.
    #[error(transparent)]
    Server(#[from] ServerCarrierError),
    /// The status socket cannot be created.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The program cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
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

/// Serves guests until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`TunnelError`].
pub fn run(args: &TunnelArgs, seccomp: Seccomp) -> Result<(), TunnelError> {
    let failed = |what| {
        move |source: Errno| TunnelError::System {
            what,
            source: source.into(),
        }
    };
    let signals = status::block_signals().map_err(|source| TunnelError::System {
        what: "take over signals",
        source,
    })?;
    let options = args.options();
    let last = behind(options.client, options.queues);
    if !DcLimits::USUAL.contains(last) {
        return Err(TunnelError::Endpoints {
            first: options.client.raw(),
            last: last.raw(),
        });
    }
    let apart = options.client.raw().abs_diff(options.server.raw());
    if apart <= options.queues.into() {
        return Err(TunnelError::Overlap {
            client: options.client,
            server: options.server,
        });
    }
    let listener = OwnedListener::bind(&args.listen, None)?;
    let status_listener = args.status.as_deref().map(status::listen).transpose()?;
    // The peer is the only one, so it has the other endpoints of the server as well.
    let server = (args.dc, args.endpoint);
    let dcs = HashMap::from([(args.dc, DcLimits::USUAL)]);
    let needs_node = ServerCarrier::node(&args.server_addr, server, dcs.clone());
    let sockets = [Some(&args.listen), args.status.as_ref()];
    let needs = Needs {
        sockets: sockets
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect(),
        connects: needs_node.is_none(),
        node: needs_node.as_ref(),
        // The notes that a frontend keeps.
        memory: true,
        ..Needs::default()
    };
    sandbox::confine(seccomp, &needs)?;
    let there = ServerCarrier::start(&args.server_addr, server, dcs)?;
    let tunnel = Arc::new(Tunnel::new(&args.listen));
    let parts: Vec<Arc<dyn Report>> = vec![tunnel.clone(), there.report()];
    let status = args.status.as_ref().zip(status_listener);
    let status =
        status.map(|(path, listener)| StatusServer::start_at(path, listener, parts.clone()));
    let _status = status.transpose()?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let stop = Arc::new(eventfd(0, flags).map_err(failed("make an eventfd"))?);
    let stopped = Arc::clone(&stop);
    // Not joined: without a signal it waits for ever.
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Ok(signal) = status::await_end(&signals, &parts) {
                info!("{signal}: ending");
                // It fails only if the counter is full, which wakes the thread as well.
                let _ = rustix::io::write(&*stopped, &1u64.to_ne_bytes());
            }
        })
        .map_err(|source| TunnelError::System {
            what: "start a thread",
            source,
        })?;
    info!(
        "guests connect at {}, to endpoint {} of container {} at {}",
        args.listen.display(),
        args.endpoint,
        args.dc,
        ServerCarrier::name(&args.server_addr)
    );
    tunnel.serve(&listener, &options, &*there.carrier(), &stop)
}

/// The guests of a tunnel, one after another.
struct Tunnel {
    socket: PathBuf,
    guest: Mutex<Option<Arc<Shared>>>,
}

impl Tunnel {
    fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            guest: Mutex::new(None),
        }
    }

    fn serve(
        &self,
        listener: &OwnedListener,
        options: &Options,
        carrier: &dyn Carrier,
        stop: &OwnedFd,
    ) -> Result<(), TunnelError> {
        let failed = |what| move |source| TunnelError::System { what, source };
        for number in 1.. {
            let mut awaited = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            match poll(&mut awaited, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("wait for guests")(errno.into())),
            }
            let [_, ended] = &awaited;
            if !ended.revents().is_empty() {
                break;
            }
            let socket = match listener.accept() {
                Ok((socket, _)) => socket,
                // The guest has gone again.
                Err(error) => {
                    rate_limited!(debug, "cannot accept a guest: {error}");
                    continue;
                }
            };
            let prepared = socket.set_nonblocking(true);
            prepared.map_err(failed("prepare a guest's connection"))?;
            // The number of the guest would be a new peer with each connection.
            let log_key = PeerCred::of(&socket).map_or(rate_limit::Peer::MAX, PeerCred::log_key);
            let guest = Shared::new(number, log_key, options.clone());
            let guest = Arc::new(guest.map_err(failed("make an eventfd"))?);
            *self.guest.lock() = Some(Arc::clone(&guest));
            set_thread_peer(guest.log_key);
            rate_limited!(info, "guest {number} has connected");
            match guest.serve(socket, carrier, stop) {
                Ok(()) => rate_limited!(info, "guest {number} has gone"),
                Err(error) => {
                    rate_limited!(error, "guest {number} is dropped: {}", error_chain(&error));
                }
            }
            *self.guest.lock() = None;
        }
        Ok(())
    }
}

impl Report for Tunnel {
    fn report(&self, to: &mut String) {
        to.push_str(&format!("guests connect at {}\n", self.socket.display()));
        match &*self.guest.lock() {
            Some(guest) => guest.report(to),
            None => to.push_str("  no guest\n"),
        }
    }

    fn json(&self) -> Value {
        json!({
            "kind": "tunnel",
            "socket": self.socket.to_string_lossy(),
            "guest": self.guest.lock().as_ref().map(|guest| guest.json()),
        })
    }
}
