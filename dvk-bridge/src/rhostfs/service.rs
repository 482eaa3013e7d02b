//! `gangplank-dvk serve`: a configuration's servers, from their carriers to their end.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use log::{info, warn};
use nix::sys::signal::{SigSet, Signal};

use super::config::{Block, Carriage, Config, ConfigError};
use super::server::{Server, StartError};
use crate::carrier::node::{Node, NodeError};
use crate::endpoint::{BoundEndpoint, Carrier, EndpointError};

/// Wait between two attempts to bind an endpoint whose carrier is not there yet.
const RETRY: Duration = Duration::from_secs(1);

/// `serve`: a share for DVS machines.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// What is served, and to whom: an rhostfs.cfg
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,

    /// The virtio-fs daemon's socket, for servers whose block names none (rhs_socket)
    #[arg(long, short, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Only examine the configuration, and say what would be served
    #[arg(long)]
    pub check: bool,
}

/// Why nothing is served, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node does not start.
    #[error("cannot become a node")]
    Node(#[from] NodeError),
    /// A server is to be reached in a way that this program has not.
    #[error("{server}: this program cannot be reached by its rhs_carrier")]
    NoCarrier {
        /// The server.
        server: String,
    },
    /// A server's endpoint cannot be had.
    #[error("{server}: its endpoint cannot be had")]
    Bind {
        /// The server.
        server: String,
        /// Why not.
        #[source]
        source: EndpointError,
    },
    /// A server does not start.
    #[error("{server}")]
    Start {
        /// The server.
        server: String,
        /// Why not.
        #[source]
        source: StartError,
    },
    /// A server's endpoint was taken away.
    #[error("{server}: its endpoint was taken away")]
    Unbound {
        /// The server.
        server: String,
    },
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

/// Serves what the configuration says until SIGTERM or SIGINT.
///
/// # Errors
/// [`ServeError`].
pub fn run(args: &ServeArgs) -> Result<(), ServeError> {
    let config = Config::load(&args.config, args.socket.as_deref())?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    if args.check {
        let told = config
            .servers
            .iter()
            .try_for_each(|block| writeln!(io::stdout(), "{}", described(block)));
        return told.map_err(|source| ServeError::System {
            what: "say what would be served",
            source,
        });
    }
    // Before any thread is there, so that all of them leave the signals to the one that waits for them.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(|errno| ServeError::System {
        what: "take over signals",
        source: errno.into(),
    })?;
    let carriers = Arc::new(Carriers::start(&config)?);
    let stop = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let mut threads = Vec::new();
    for block in config.servers {
        let (carriers, stop, tell) = (Arc::clone(&carriers), Arc::clone(&stop), tell.clone());
        threads.push(start("rhostfs", move || {
            let served = serve(&block, &carriers, &stop);
            // Nobody listens any more when all is to end.
            let _ = tell.send(served.err());
        })?);
    }
    await_signals(signals, tell)?;
    let ended = told.recv().ok().flatten();
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        // It has panicked, which is logged, or ended.
        let _ = thread.join();
    }
    ended.map_or(Ok(()), Err)
}

/// A thread that tells of a signal. It is not joined: without one it waits for ever.
fn await_signals(signals: SigSet, tell: Sender<Option<ServeError>>) -> Result<(), ServeError> {
    start("signals", move || {
        if let Ok(signal) = signals.wait() {
            info!("{signal}: ending");
            let _ = tell.send(None);
        }
    })?;
    Ok(())
}

fn start(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, ServeError> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map_err(|source| ServeError::System {
        what: "start a thread",
        source,
    })
}

/// The ways to servers' endpoints.
struct Carriers {
    node: Option<Node>,
}

impl Carriers {
    /// Those that the configuration's servers need.
    fn start(config: &Config) -> Result<Self, ServeError> {
        let wanted = |carriage| {
            config
                .servers
                .iter()
                .any(|block| block.carriage == carriage)
        };
        let node = config.node.clone().filter(|_| wanted(Carriage::Node));
        Ok(Self {
            node: node.map(Node::start).transpose()?,
        })
    }

    fn get(&self, block: &Block) -> Result<&dyn Carrier, ServeError> {
        let carrier = match block.carriage {
            Carriage::Node => self.node.as_ref().map(|node| node as &dyn Carrier),
            Carriage::Local | Carriage::Device => None,
        };
        carrier.ok_or_else(|| ServeError::NoCarrier {
            server: block.name.clone(),
        })
    }
}

/// A thread: one server.
fn serve(block: &Block, carriers: &Carriers, stop: &AtomicBool) -> Result<(), ServeError> {
    let carrier = carriers.get(block)?;
    let Some(endpoint) = bind(block, carrier, stop)? else {
        return Ok(());
    };
    let failed = |source| ServeError::Start {
        server: block.name.clone(),
        source,
    };
    let server = Server::start(endpoint, &block.options).map_err(failed)?;
    info!("{}", described(block));
    server.run(stop);
    if stop.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(ServeError::Unbound {
        server: block.name.clone(),
    })
}

/// Binds a server's endpoint, as soon as its carrier is there; none if all is to end before.
fn bind(
    block: &Block,
    carrier: &dyn Carrier,
    stop: &AtomicBool,
) -> Result<Option<Arc<dyn BoundEndpoint>>, ServeError> {
    let mut complained = false;
    while !stop.load(Ordering::Relaxed) {
        match carrier.bind(block.dc, block.endpoint, &block.name) {
            Ok(endpoint) => return Ok(Some(endpoint)),
            Err(error @ (EndpointError::NotConnected { .. } | EndpointError::TimedOut { .. })) => {
                if !complained {
                    warn!("{}: {error}; it is tried again", block.name);
                }
                complained = true;
                thread::sleep(RETRY);
            }
            Err(source) => {
                let server = block.name.clone();
                return Err(ServeError::Bind { server, source });
            }
        }
    }
    Ok(None)
}

/// What a server does, in a line.
fn described(block: &Block) -> String {
    format!(
        "{}: endpoint {} of container {} serves {} of {}",
        block.name,
        block.endpoint,
        block.dc,
        block.options.root,
        block.options.socket.display()
    )
}
