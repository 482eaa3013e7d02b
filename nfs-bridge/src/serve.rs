//! `gangplank-nfs serve`: starts what serves, and waits for the end.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gangplank_sandbox::seccomp::Seccomp;
use gangplank_service::signals::{STATUS, Signals, TERMINATION};
use gangplank_service::{readiness, rlimit};
use log::{info, warn};
use nfs3_types::portmap::{IPPROTO_TCP, IPPROTO_UDP, PMAP_PORT, mapping};
use nfs3_types::{mount, nfs3, portmap};

use crate::config::{ConfigError, FileConfig};
use crate::exports::{ExportError, Exports, Rule};
use crate::mount3::Mount3;
use crate::network::config::{NetworkArgs, NetworkError, OwnNetwork};
use crate::network::connections::Connections;
use crate::network::host::{self, HostDatagrams};
use crate::nfs3::Nfs3;
use crate::nlm::locks::Locks;
use crate::nlm::{self, Nlm4};
use crate::nsm::{self, Monitor, Nsm1};
use crate::portmap::Portmap;
use crate::rpc::client::RpcClient;
use crate::rpc::program::Program;
use crate::rpc::server::Server;
use crate::sandbox;
use crate::share::Share;
use crate::share::connector::Connector;
use crate::share::store::Store;
use crate::state_log::LogError;
use crate::status::{self, StatusSource};

/// Threads that execute calls.
const DEFAULT_WORKERS: u16 = 16;

/// Microseconds for which to poll, as the daemon does.
const DEFAULT_BUSY_POLL: u16 = 200;

/// Seconds that the daemon may take for a request.
const DEFAULT_TIMEOUT: u64 = 30;

/// Seconds in which clients reclaim their locks after a restart. Linux' clients do it within one,
/// once they are told.
const DEFAULT_GRACE: u64 = 45;

/// How often a port is tried for both protocols where any will do.
const PORT_TRIES: u32 = 16;

/// The port of NFS.
const NFS_PORT: u16 = 2049;

/// `serve`: serves a share to NFS clients.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("rules").args(["exports", "clients"]))]
pub struct ServeArgs {
    /// Take the options that are not given here from this file (TOML)
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The virtio-fs daemon's vhost-user socket
    #[arg(long, short, value_name = "PATH", required_unless_present = "config")]
    pub backend: Option<PathBuf>,

    /// What is exported to whom: lines of a directory of the share and its clients, as in
    /// exports(5)
    #[arg(long, value_name = "FILE")]
    pub exports: Option<PathBuf>,

    /// Export the whole share to this client: *, an address or a network, with options as in
    /// exports(5), such as 10.0.2.0/24(rw,no_root_squash); repeatable, the first that matches
    /// counts
    #[arg(long = "client", value_name = "CLIENT")]
    pub clients: Vec<Rule>,

    /// Serve NFS and MOUNT at this address of the host; repeatable
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Vec<SocketAddr>,

    /// Be the port mapper at this address of the host, usually port 111; repeatable
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub portmap: Vec<SocketAddr>,

    /// The server's own address.
    #[command(flatten)]
    pub network: NetworkArgs,

    /// Keep in this directory where files are and who has locks, so that clients' handles and locks
    /// outlive this program; it must exist
    #[arg(long, value_name = "DIRECTORY")]
    pub state: Option<PathBuf>,

    /// Seconds after a restart in which clients can only reclaim the locks that they had
    /// [default: 45]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub grace: Option<u64>,

    /// Threads that execute calls, beside one of each connection [default: 16]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,

    /// How long to poll for the daemon's reply, and for the next call of a client at an address of
    /// the host, before sleeping, if they are likely to come; 0 never polls [default: 200]
    #[arg(long, value_name = "MICROSECONDS",
          value_parser = clap::value_parser!(u16).range(0..=10_000))]
    pub busy_poll: Option<u16>,

    /// Seconds that the daemon may take for one request [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: Option<u64>,
}

impl std::str::FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|(what, word)| format!("{what}: {word:?}"))
    }
}

/// Why `serve` did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The rules are wrong.
    #[error("{}", .file.display())]
    Exports {
        /// Their file.
        file: PathBuf,
        /// What is wrong.
        #[source]
        source: ExportError,
    },
    /// The configuration file is wrong.
    #[error("{}", .file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        #[source]
        source: ConfigError,
    },
    /// The daemon's socket is not given.
    #[error("the daemon's socket is not given: --backend, or backend in the configuration")]
    NoBackend,
    /// Nobody may mount anything.
    #[error("nothing is exported: --client or --exports, or exports in the configuration")]
    NoExports,
    /// There is no way to reach the server.
    #[error("clients need a way to the server: --listen, or --address")]
    NoNetwork,
    /// The log of file handles, or that of clients with locks, cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An address of the host cannot be listened at.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The server's own network cannot be set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The program cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// The system refused an operation.
    #[error("cannot {what}")]
    System {
        /// The operation.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ServeError {
    /// The exit status: 2 if what was asked for is wrong, 1 otherwise.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Exports { .. }
            | Self::Config { .. }
            | Self::NoBackend
            | Self::NoExports
            | Self::NoNetwork
            | Self::Network(NetworkError::NoSwitch) => 2,
            _ => 1,
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

/// The sockets of the host that clients reach.
#[derive(Debug, Default)]
struct HostSockets {
    streams: Vec<TcpListener>,
    /// At the same ports.
    datagrams: HostDatagrams,
    /// The port mapper's.
    portmap: Vec<UdpSocket>,
}

impl HostSockets {
    fn open(args: &ServeArgs) -> Result<Self, ServeError> {
        let failed = |address| move |source| ServeError::Listen { address, source };
        let mut sockets = Self::default();
        for address in args.listen.iter().copied() {
            let (listener, socket) = bind_both(address).map_err(failed(address))?;
            sockets.streams.push(listener);
            sockets.datagrams.0.push(Arc::new(socket));
        }
        for address in args.portmap.iter().copied() {
            let listener = TcpListener::bind(address).map_err(failed(address))?;
            sockets.streams.push(listener);
            let socket = UdpSocket::bind(address).map_err(failed(address))?;
            sockets.portmap.push(socket);
        }
        Ok(sockets)
    }

    fn serve(
        self,
        server: &Arc<Server>,
        for_datagrams: &Arc<Server>,
        client: &Arc<RpcClient>,
        connections: &Arc<Connections>,
        busy_poll: Duration,
    ) -> io::Result<()> {
        for listener in self.streams {
            host::accept(
                Arc::clone(server),
                listener,
                Arc::clone(connections),
                busy_poll,
            )?;
        }
        for socket in self.datagrams.0 {
            host::exchange(Arc::clone(server), Arc::clone(client), socket)?;
        }
        for socket in self.portmap {
            host::answer(Arc::clone(for_datagrams), socket)?;
        }
        Ok(())
    }
}

/// Sockets for TCP and UDP at one port.
fn bind_both(address: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    for _ in 0..PORT_TRIES {
        let listener = TcpListener::bind(address)?;
        match UdpSocket::bind(listener.local_addr()?) {
            // The port that the system has chosen for TCP.
            Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            socket => return Ok((listener, socket?)),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`ServeError`].
pub fn run(args: &ServeArgs, seccomp: Seccomp) -> Result<(), ServeError> {
    let (args, exports) = complete(args)?;
    let args = &args;
    let backend = args.backend.clone().ok_or(ServeError::NoBackend)?;
    if args.listen.is_empty() && args.network.address.is_none() {
        return Err(ServeError::NoNetwork);
    }
    rlimit::raise_descriptor_limit();
    // Before any thread starts, so that all threads leave the signals to this one.
    let signals = Signals::block(TERMINATION.into_iter().chain(STATUS))
        .map_err(system("take over signals"))?;
    let store = match &args.state {
        Some(directory) => Store::open(directory)?,
        None => {
            warn!("without --state, clients' file handles end with this program");
            Store::default()
        }
    };
    let sockets = HostSockets::open(args)?;
    for socket in &sockets.streams {
        if let Ok(address) = socket.local_addr() {
            info!("listening at {address}");
        }
    }
    for socket in &sockets.portmap {
        if let Ok(address) = socket.local_addr() {
            info!("port mapper at {address}, UDP");
        }
    }
    let monitor = Arc::new(Monitor::open(args.state.as_deref())?);
    let port = sockets.streams.first().map(TcpListener::local_addr);
    let port = port.and_then(Result::ok).map_or(NFS_PORT, |at| at.port());
    let mut own = OwnNetwork::open(&args.network, (NFS_PORT, PMAP_PORT))?;
    sandbox::confine(seccomp, &OwnNetwork::paths(&args.network))?;
    let limit = Duration::from_secs(args.timeout.unwrap_or(DEFAULT_TIMEOUT));
    let workers = args.workers.unwrap_or(DEFAULT_WORKERS);
    let busy_poll = args.busy_poll.unwrap_or(DEFAULT_BUSY_POLL);
    let busy_poll = Duration::from_micros(busy_poll.into());
    let connector = Connector::start(backend.clone(), limit, busy_poll, workers);
    let connector = connector.map_err(system("start a thread"))?;
    let share = Share::new(connector, store, exports)
        .map_err(|error| system("get random numbers")(error.into()))?;
    let share = Arc::new(share);
    // Without clients that had locks, there is nothing to reclaim.
    let grace = Duration::from_secs(args.grace.unwrap_or(DEFAULT_GRACE));
    let grace = (!monitor.before().is_empty()).then_some(grace);
    let locks = Locks::start(Arc::clone(&share), grace).map_err(system("start a thread"))?;
    let programs = Programs {
        share,
        locks,
        monitor,
    };
    let client = RpcClient::start(Box::new(sockets.datagrams.clone()));
    let client = client.map_err(system("start a thread"))?;
    let server = Arc::new(Server::new(programs.at(port, &client)));
    // A datagram to the port mapper is answered at once, by the thread that received it.
    let for_datagrams = Arc::new(Server::new(vec![port_mapper(port)]));
    let connections = Arc::new(Connections::default());
    server
        .start(workers.into())
        .and_then(|()| sockets.serve(&server, &for_datagrams, &client, &connections, busy_poll))
        .map_err(system("start a thread"))?;
    let mut own_client = None;
    if let Some(own) = &mut own {
        let client = RpcClient::start(Box::new(own.transport()));
        let client = client.map_err(system("start a thread"))?;
        let server = Arc::new(Server::new(programs.at(NFS_PORT, &client)));
        server
            .start(workers.into())
            .map_err(system("start a thread"))?;
        let for_datagrams = Arc::new(Server::new(vec![port_mapper(NFS_PORT)]));
        own.start(server, for_datagrams, Arc::clone(&client))?;
        own_client = Some((IpAddr::V4(own.address()), client));
    }
    programs.monitor.notify(|server| match &own_client {
        Some((address, client)) if *address == server => Some(Arc::clone(client)),
        _ => (!args.listen.is_empty()).then(|| Arc::clone(&client)),
    });
    readiness::ready("serving");
    let status = StatusSource {
        daemon: backend,
        share: programs.share,
        locks: programs.locks,
        connections,
        own_address: own_client.map(|(address, _)| address),
    };
    status::wait(&signals, &status).map_err(system("wait for signals"))?;
    readiness::stopping();
    Ok(())
}

/// The options with those of the configuration file, and the exports.
fn complete(args: &ServeArgs) -> Result<(ServeArgs, Exports), ServeError> {
    let mut args = args.clone();
    let mut exports = exports(&args)?;
    if let Some(file) = args.config.clone() {
        let wrong = |source| ServeError::Config {
            file: file.clone(),
            source,
        };
        let config = FileConfig::load(&file).map_err(wrong)?;
        let in_file = config.exports().map_err(wrong)?;
        exports = exports.or(in_file);
        config.complete(&mut args);
    }
    Ok((args, exports.ok_or(ServeError::NoExports)?))
}

/// The exports of the command line, if it has any.
fn exports(args: &ServeArgs) -> Result<Option<Exports>, ServeError> {
    let Some(file) = &args.exports else {
        let rules = args.clients.clone();
        return Ok((!rules.is_empty()).then(|| Exports::whole_share(rules)));
    };
    let wrong = |source| ServeError::Exports {
        file: file.clone(),
        source,
    };
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|source| wrong(ExportError::Read(source)))?;
    Exports::parse(&text).map(Some).map_err(wrong)
}

/// What the programs of all networks have in common.
struct Programs {
    share: Arc<Share>,
    locks: Arc<Locks>,
    monitor: Arc<Monitor>,
}

impl Programs {
    /// The programs, all at `port` of a network in which `client` calls clients.
    fn at(&self, port: u16, client: &Arc<RpcClient>) -> Vec<Arc<dyn Program>> {
        let (share, locks) = (|| Arc::clone(&self.share), || Arc::clone(&self.locks));
        let monitor = || Arc::clone(&self.monitor);
        vec![
            Arc::new(Nfs3::new(share())),
            Arc::new(Mount3::new(share())),
            Arc::new(Nlm4::new(share(), locks(), monitor(), Arc::clone(client))),
            Arc::new(Nsm1::new(monitor(), locks())),
            port_mapper(port),
        ]
    }
}

/// The port mapper that tells where the programs are.
fn port_mapper(port: u16) -> Arc<dyn Program> {
    let mapped = |prog, vers, prot, port: u16| mapping {
        prog,
        vers,
        prot,
        port: port.into(),
    };
    let mappings = vec![
        mapped(portmap::PROGRAM, portmap::VERSION, IPPROTO_TCP, PMAP_PORT),
        mapped(portmap::PROGRAM, portmap::VERSION, IPPROTO_UDP, PMAP_PORT),
        mapped(mount::PROGRAM, mount::VERSION, IPPROTO_TCP, port),
        mapped(nfs3::PROGRAM, nfs3::VERSION, IPPROTO_TCP, port),
        mapped(
            nlm::message::PROGRAM,
            nlm::message::VERSION,
            IPPROTO_TCP,
            port,
        ),
        mapped(
            nlm::message::PROGRAM,
            nlm::message::VERSION,
            IPPROTO_UDP,
            port,
        ),
        mapped(nsm::PROGRAM, nsm::VERSION, IPPROTO_TCP, port),
        mapped(nsm::PROGRAM, nsm::VERSION, IPPROTO_UDP, port),
    ];
    Arc::new(Portmap::new(mappings))
}
