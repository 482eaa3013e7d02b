//! `gangplank-dvk serve`: starts and ends the servers of a configuration.

mod check;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use gangplank_sandbox::seccomp::Seccomp;
use gangplank_service::readiness;
use gangplank_service::signals::TERMINATION;
use gangplank_service::watchdog::Watchdog;
use log::{info, warn};
use nix::sys::signal::SigSet;
use serde_json::{Value, json};

use self::check::{fault, plan, print, tell};
use super::config::{Block, CarrierKind, Config, ConfigError};
use super::server::{Server, StartError};
use super::tunnels::ServedTunnels;
use crate::abi::{DcId, Endpoint};
use crate::carrier::device::{self, Device, DeviceError};
use crate::carrier::local::{Local, LocalError};
use crate::carrier::node::{Node, NodeConfig, NodeError};
use crate::endpoint::{BoundEndpoint, Carrier, EndpointError};
use crate::sandbox::{self, Needs};
use crate::status::{self, Report, StatusError, StatusServer};

/// Wait before the next bind of an endpoint whose carrier is not available yet.
const BIND_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// `serve`: serves a share to DVS machines.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// The configuration: what to serve to which clients (an rhostfs.cfg)
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,

    /// The virtio-fs daemon's socket, for servers whose block has none (rhs_socket)
    #[arg(long, short, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Show the state of carriers, servers and clients to each program that connects to this socket
    #[arg(long, value_name = "PATH")]
    pub status: Option<PathBuf>,

    /// Only check the configuration and print what would be served
    #[arg(long)]
    pub check: bool,

    /// Write the result of --check as a JSON object
    #[arg(long, requires = "check")]
    pub json: bool,
}

/// Why `serve` did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration has errors.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node cannot start.
    #[error("cannot become a node")]
    Node(#[from] NodeError),
    /// The switch cannot be used.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The kernel's DVK is not available.
    #[error("{server}: cannot use rhs_carrier device or vq_carrier device, the default")]
    Device {
        /// The first server that needs it.
        server: String,
        /// The reason.
        #[source]
        source: DeviceError,
    },
    /// The status socket cannot be created.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The program cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// A server needs a carrier that was not started.
    #[error("{server}: the carrier of its rhs_carrier or vq_carrier was not started")]
    NoCarrier {
        /// The server.
        server: String,
    },
    /// A server's endpoint cannot be bound.
    #[error("{server}: cannot bind its endpoint")]
    Bind {
        /// The server.
        server: String,
        /// The reason.
        #[source]
        source: EndpointError,
    },
    /// A server cannot start.
    #[error("{server}")]
    Start {
        /// The server.
        server: String,
        /// The reason.
        #[source]
        source: StartError,
    },
    /// A server's endpoint was taken away.
    #[error("{server}: its endpoint was removed")]
    Unbound {
        /// The server.
        server: String,
    },
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

impl ServeError {
    /// The exit status: 2 if the configuration is wrong, 1 otherwise.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}

/// Serves the configuration until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`ServeError`].
pub fn run(args: &ServeArgs, seccomp: Seccomp) -> Result<(), ServeError> {
    let config = Config::load(&args.config, args.socket.as_deref());
    if let (true, Err(ConfigError::Faults { faults })) = (args.json, &config) {
        let faults = faults.iter().map(fault).collect::<Vec<_>>();
        print(&json!({ "valid": false, "faults": faults }))?;
    }
    let config = config?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    if args.check {
        match args.json {
            true => print(&plan(&config))?,
            false => tell(&config)?,
        }
        return open_device(&config).map(drop);
    }
    let signals = status::block_signals().map_err(|source| ServeError::System {
        what: "take over signals",
        source,
    })?;
    let device = open_device(&config)?;
    let listener = args.status.as_deref().map(status::listen).transpose()?;
    let needs = Needs {
        sockets: args.status.iter().map(PathBuf::as_path).collect(),
        connects: true,
        node: node_of(&config),
        device: device.is_some(),
        memory: true,
        ..Needs::default()
    };
    sandbox::confine(seccomp, &needs)?;
    let carriers = Arc::new(Carriers::start(&config, device)?);
    let stop = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let servers = config.servers.into_iter();
    let servers: Vec<_> = servers.map(|block| Arc::new(Served::new(block))).collect();
    let reporting = servers
        .iter()
        .map(|server| Arc::clone(server) as Arc<dyn Report>);
    let virtqueues = config.virtqueues.into_iter();
    let virtqueues: Vec<_> = virtqueues
        .map(|block| Arc::new(ServedTunnels::new(block)))
        .collect();
    let tunnels_reporting = virtqueues
        .iter()
        .map(|tunnels| Arc::clone(tunnels) as Arc<dyn Report>);
    let parts: Vec<_> = carriers
        .parts()
        .chain(reporting)
        .chain(tunnels_reporting)
        .collect();
    let status = args.status.as_ref().zip(listener);
    let status =
        status.map(|(path, listener)| StatusServer::start_at(path, listener, parts.clone()));
    let _status = status.transpose()?;
    let mut threads = Vec::new();
    for server in servers {
        let (carriers, stop, tell) = (Arc::clone(&carriers), Arc::clone(&stop), tell.clone());
        threads.push(start("rhostfs", move || {
            let served = server.serve(&carriers, &stop);
            // The receiver is gone when the program ends.
            let _ = tell.send(served.err());
        })?);
    }
    for tunnels in virtqueues {
        let (carriers, stop, tell) = (Arc::clone(&carriers), Arc::clone(&stop), tell.clone());
        threads.push(start("virtqueue", move || {
            let served = tunnels.serve(&carriers, &stop);
            // The receiver is gone when the program ends.
            let _ = tell.send(served.err());
        })?);
    }
    await_signals(signals, parts, tell)?;
    readiness::ready("Serving DVS machines");
    let ended = wait_for_end(&told);
    readiness::stopping();
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        // The thread has ended, or panicked, which is logged.
        let _ = thread.join();
    }
    ended.map_or(Ok(()), Err)
}

/// Waits for a signal, or for the end of a server, with its error. Tells the service manager that
/// the program is alive.
fn wait_for_end(told: &Receiver<Option<ServeError>>) -> Option<ServeError> {
    let Some(mut watchdog) = Watchdog::from_environment() else {
        return told.recv().ok().flatten();
    };
    loop {
        match told.recv_timeout(watchdog.left()) {
            Err(RecvTimeoutError::Timeout) => {
                if watchdog.is_due() {
                    watchdog.alive();
                }
            }
            ended => return ended.ok().flatten(),
        }
    }
}

/// Starts a thread that reports the first signal that ends the program, and restores the default
/// action for the next. The thread is not joined, because without a signal it waits for ever.
fn await_signals(
    signals: SigSet,
    parts: Vec<Arc<dyn Report>>,
    tell: Sender<Option<ServeError>>,
) -> Result<(), ServeError> {
    start("signals", move || {
        if let Ok(signal) = status::await_end(&signals, &parts) {
            info!("{signal}: ending; another signal ends at once");
            let _ = tell.send(None);
            if SigSet::from_iter(TERMINATION).thread_unblock().is_ok() {
                loop {
                    thread::park();
                }
            }
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

/// The first server that uses a carrier.
fn first_on(config: &Config, carrier_kind: CarrierKind) -> Option<&str> {
    let servers = config.servers.iter();
    let servers = servers.map(|block| (&block.name, block.carrier_kind));
    let virtqueues = config.virtqueues.iter();
    let virtqueues = virtqueues.map(|block| (&block.name, block.carrier_kind));
    let mut all = servers.chain(virtqueues);
    all.find(|(_, kind)| *kind == carrier_kind)
        .map(|(name, _)| name.as_str())
}

/// The node that this program becomes.
fn node_of(config: &Config) -> Option<&NodeConfig> {
    let node = config.node.as_ref();
    node.filter(|_| first_on(config, CarrierKind::Node).is_some())
}

/// Opens the kernel's DVK if a server uses it.
fn open_device(config: &Config) -> Result<Option<Device>, ServeError> {
    let device = first_on(config, CarrierKind::Device).map(|server| {
        let device = Device::open(Path::new(device::PATH));
        device.map_err(|source| ServeError::Device {
            server: server.to_owned(),
            source,
        })
    });
    device.transpose()
}

/// The carriers of the servers.
pub(super) struct Carriers {
    node: Option<Arc<Node>>,
    local: Option<Arc<Local>>,
    device: Option<Arc<Device>>,
}

impl Carriers {
    /// Starts the carriers that the configuration's servers need.
    fn start(config: &Config, device: Option<Device>) -> Result<Self, ServeError> {
        let node = node_of(config).cloned();
        let local = config.local.clone();
        let local = local.filter(|_| first_on(config, CarrierKind::Local).is_some());
        Ok(Self {
            node: node.map(Node::start).transpose()?.map(Arc::new),
            local: local.map(Local::start).transpose()?.map(Arc::new),
            device: device.map(Arc::new),
        })
    }

    pub(super) fn get(
        &self,
        server: &str,
        carrier_kind: CarrierKind,
    ) -> Result<&dyn Carrier, ServeError> {
        let carrier = match carrier_kind {
            CarrierKind::Node => self.node.as_deref().map(|node| node as &dyn Carrier),
            CarrierKind::Local => self.local.as_deref().map(|local| local as &dyn Carrier),
            CarrierKind::Device => self.device.as_deref().map(|device| device as &dyn Carrier),
        };
        carrier.ok_or_else(|| ServeError::NoCarrier {
            server: server.to_owned(),
        })
    }

    /// The carriers that report a state.
    fn parts(&self) -> impl Iterator<Item = Arc<dyn Report>> {
        let node = self.node.clone().map(|node| node as Arc<dyn Report>);
        let local = self.local.clone().map(|local| local as Arc<dyn Report>);
        let device = self.device.clone().map(|device| device as Arc<dyn Report>);
        node.into_iter().chain(local).chain(device)
    }
}

/// One server of the configuration.
struct Served {
    block: Block,
    /// Set once its endpoint is bound.
    server: OnceLock<Server>,
}

impl Served {
    fn new(block: Block) -> Self {
        Self {
            block,
            server: OnceLock::new(),
        }
    }

    /// Runs the server in its thread.
    fn serve(&self, carriers: &Carriers, stop: &AtomicBool) -> Result<(), ServeError> {
        let block = &self.block;
        let carrier = carriers.get(&block.name, block.carrier_kind)?;
        let place = (block.dc, block.endpoint);
        let Some(endpoint) = bind(&block.name, place, carrier, stop)? else {
            return Ok(());
        };
        let server = Server::start(endpoint, &block.options);
        let server = server.map_err(|source| ServeError::Start {
            server: block.name.clone(),
            source,
        })?;
        info!("{}", described(block));
        self.server.get_or_init(|| server).run(stop);
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(ServeError::Unbound {
            server: block.name.clone(),
        })
    }
}

impl Report for Served {
    fn report(&self, to: &mut String) {
        to.push_str(&described(&self.block));
        to.push('\n');
        match self.server.get() {
            Some(server) => server.report(to),
            None => to.push_str("  its endpoint is not bound yet\n"),
        }
    }

    fn json(&self) -> Value {
        json!({
            "kind": "rhostfs_server",
            "name": self.block.name,
            "dc": self.block.dc.raw(),
            "endpoint": self.block.endpoint.raw(),
            "root": self.block.options.root,
            "socket": self.block.options.socket.to_string_lossy(),
            "server": self.server.get().map(|server| server.json()),
        })
    }
}

/// Binds a server's endpoint as soon as its carrier is available. Returns `None` if the program
/// ends before.
pub(super) fn bind(
    name: &str,
    (dc, endpoint): (DcId, Endpoint),
    carrier: &dyn Carrier,
    stop: &AtomicBool,
) -> Result<Option<Arc<dyn BoundEndpoint>>, ServeError> {
    let mut complained = false;
    while !stop.load(Ordering::Relaxed) {
        match carrier.bind(dc, endpoint, name) {
            Ok(endpoint) => return Ok(Some(endpoint)),
            Err(error @ (EndpointError::NotConnected { .. } | EndpointError::TimedOut { .. })) => {
                if !complained {
                    warn!("{name}: {error}; retrying");
                }
                complained = true;
                thread::sleep(BIND_RETRY_INTERVAL);
            }
            Err(source) => {
                let server = name.to_owned();
                return Err(ServeError::Bind { server, source });
            }
        }
    }
    Ok(None)
}

/// Describes a server in a line.
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
