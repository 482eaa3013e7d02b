//! Several shares in one daemon.
//!
//! Each share is served by what a daemon of one share is: a supervisor, an acceptor, and two
//! processes for each guest. So a share's processes are confined to its directory and know of no
//! other, and each option means what it means for one share. The process of this module starts them
//! by executing the running program, with the share's options as its command line.
//!
//! ```text
//! gangplankd ─┬─ supervisor of share "home" ─┬─ acceptor      as of a daemon of one share
//! (daemon.rs) │                              └─ keepers ...
//!             ├─ supervisor of share "tools" ...
//!             └─ threads: one for each client of --control and --metrics (clients.rs)
//! ```
//!
//! It reads nothing of a guest or an acceptor. The supervisors tell it by `sd_notify(3)`'s messages
//! that they serve or are alive (`notify.rs`), each has a control socket in a directory that nobody
//! else may enter (`private_dir.rs`), and the kernel sends them SIGTERM when it ends (`member.rs`).

pub mod client;
pub mod clients;
pub mod daemon;
pub mod file;
pub mod member;
pub mod notify;
pub mod options;
pub mod private_dir;
pub mod process;
pub mod request;
pub mod share;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use gangplank_service::signals::{STATUS, Signal, Signals, TERMINATION};
use gangplank_service::watchdog::Watchdog;
use gangplank_service::{activation, fd_store, logging};
use thiserror::Error;

pub use self::client::run as run_command;
use self::clients::Clients;
use self::daemon::Daemon;
use self::notify::NotifySocket;
use self::private_dir::PrivateDir;
use self::process::Start;
use self::share::{Origin, Share};
use crate::args::{Args, EarlyExit};
use crate::config::Config;
use crate::handover::program::Program;
use crate::sandbox;
use crate::status::options::{MetricsAddress, Options as StatusOptions};
use crate::status::sockets::{self, Sockets};
use crate::sys::process::{adopt, set_signal_dispositions};

/// Why a daemon of several shares does not serve, or not any more.
#[derive(Debug, Error)]
pub enum Error {
    /// An option of the command line.
    #[error(transparent)]
    Option(#[from] options::Error),
    /// What the parser says of the options of all shares.
    #[error("{0}")]
    Options(String),
    /// A share.
    #[error(transparent)]
    Syntax(#[from] share::Error),
    /// A share's file.
    #[error(transparent)]
    File(#[from] file::Error),
    /// There is nothing to serve.
    #[error(
        "no shares: pass --share, or a --shares-dir with files, or --control to add shares later"
    )]
    None,
    /// `FileDescriptorStoreMax=`.
    #[error(
        "the service manager holds descriptors (FileDescriptorStoreMax=), which several shares \
         cannot use: remove that from the unit, or have a unit for each share"
    )]
    Holder,
    /// A socket of the service manager.
    #[error(transparent)]
    Activation(#[from] activation::Error),
    /// A socket without a share.
    #[error(
        "the service manager passes a socket by the name {0:?}, and no share has this tag: set \
         FileDescriptorName= of the socket unit to a share's tag"
    )]
    NoShareOfSocket(String),
    /// Two sockets for one share.
    #[error(
        "the service manager passes two sockets by the name {0:?}: give each socket unit another \
         FileDescriptorName="
    )]
    TwoSockets(String),
    /// A socket that cannot be used.
    #[error("cannot use the socket {name:?} that the service manager passes")]
    Socket {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// An inherited descriptor, or the directory of the daemon's own sockets.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The control socket or the metrics.
    #[error(transparent)]
    Status(#[from] sockets::Error),
    /// Capabilities.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The log.
    #[error(transparent)]
    Logging(#[from] logging::Error),
    /// A share that cannot be served.
    #[error("{0}")]
    Share(String),
    /// Signals or descriptors.
    #[error("cannot wait for the shares' processes")]
    Wait(#[source] io::Error),
}

impl Error {
    /// Whether the command line or a file is wrong, and nothing was started.
    #[must_use]
    pub const fn is_of_options(&self) -> bool {
        matches!(
            self,
            Self::Option(_) | Self::Options(_) | Self::Syntax(_) | Self::File(_) | Self::None
        )
    }
}

/// What the operator wants.
#[derive(Debug)]
pub struct Plan {
    shares: Vec<Share>,
    of_all: Vec<options::Given>,
    shares_dir: Option<PathBuf>,
    socket_dir: Option<PathBuf>,
    status: StatusOptions,
    logging: logging::Options,
    max_deaths: usize,
}

impl Plan {
    /// Reads the command line `arguments`, which was parsed as `args`, and the files that it names.
    ///
    /// # Errors
    /// [`enum@Error`], all of options.
    pub fn new(args: &Args, arguments: Vec<OsString>) -> Result<Self, Error> {
        let given = Args::given(arguments).map_err(|exit| Error::Options(exit.summary()))?;
        let of_all = options::of_all(given)?;
        let parse = |text: &String| Share::parse(text, Origin::CommandLine);
        let shares = args.shares.share.iter().map(parse);
        let mut shares = shares.collect::<Result<Vec<_>, _>>()?;
        if let Some(directory) = &args.shares.shares_dir {
            for path in file::list(directory)? {
                shares.push(file::read(&path)?);
            }
        }
        if shares.is_empty() && args.status.control.is_none() {
            return Err(Error::None);
        }
        // The log and the addresses are checked as those of one share.
        let one = Args {
            shared_dir: Some("/".into()),
            fd: Some(0),
            socket_group: None,
            ..args.clone()
        };
        let config = Config::from_args(one).map_err(|error| Error::Options(error.to_string()))?;
        Ok(Self {
            shares,
            of_all,
            shares_dir: args.shares.shares_dir.clone(),
            socket_dir: args.shares.socket_dir.clone(),
            status: config.status,
            logging: config.logging,
            max_deaths: config.max_crashes,
        })
    }

    /// Has the log filtered as the environment says.
    pub fn filter_log(&mut self, filter: Option<String>) {
        self.logging.filter = filter;
    }
}

/// Serves all shares until a signal ends the daemon. Returns the exit status of the process.
///
/// The caller must be single-threaded, must not have opened descriptors, and call this once.
///
/// # Errors
/// [`enum@Error`], worded for the operator.
pub fn run(plan: Plan) -> Result<u8, Error> {
    let system = |what| move |source: io::Error| Error::System { what, source };
    if fd_store::capacity().is_some() {
        return Err(Error::Holder);
    }
    // Before anything opens descriptors.
    let passed = take_sockets()?;
    logging::start(&plan.logging)?;
    set_signal_dispositions().map_err(Error::Wait)?;
    let wanted = TERMINATION.into_iter().chain(STATUS);
    let wanted = wanted.chain([Signal::SIGCHLD]);
    let signals = Signals::block(wanted).map_err(Error::Wait)?;
    let program = Program::running().map_err(system("find the program's own file"))?;
    let sockets = Sockets::bind(&plan.status)?;
    let directory = PrivateDir::make();
    let directory = directory.map_err(system("make a directory for the shares' sockets"));
    let directory = match directory {
        Ok(directory) => directory,
        Err(error) => {
            sockets.remove();
            return Err(error);
        }
    };
    let made = NotifySocket::bind(directory.join("notify")).and_then(|notify| {
        let clients = Clients::new(sockets.listeners()?)?;
        Ok((notify, clients))
    });
    let (notify, clients) = match made.map_err(system("make the shares' sockets")) {
        Ok(made) => made,
        Err(error) => {
            sockets.remove();
            directory.remove();
            return Err(error);
        }
    };
    let watchdog = Watchdog::from_environment();
    let own_sockets = [plan.status.control.clone(), metrics_path(&plan.status)];
    let mut daemon = Daemon {
        start: Start {
            program: program.path().to_owned(),
            of_all: plan.of_all,
            notify: notify.path().to_owned(),
            watchdog: watchdog.as_ref().map(Watchdog::interval),
            max_deaths: plan.max_deaths,
        },
        signals,
        notify,
        directory,
        clients,
        passed,
        shares: Vec::new(),
        shares_dir: plan.shares_dir,
        socket_dir: plan.socket_dir,
        own_sockets: own_sockets.into_iter().flatten().collect(),
        has_control: plan.status.control.is_some(),
        watchdog,
        count: 0,
        has_begun: false,
        is_ending: false,
        is_reloading: false,
    };
    let result = serve(&mut daemon, plan.shares);
    daemon.directory.remove();
    sockets.remove();
    result
}

fn serve(daemon: &mut Daemon, shares: Vec<Share>) -> Result<u8, Error> {
    let unused = |name: &&String| !shares.iter().any(|share| share.tag == **name);
    if let Some(name) = daemon.passed.keys().find(unused) {
        return Err(Error::NoShareOfSocket(name.clone()));
    }
    sandbox::reduce_supervisor()?;
    let mut begun = Ok(());
    for share in shares {
        begun = daemon.begin(share);
        if begun.is_err() {
            break;
        }
    }
    if let Err(reason) = begun {
        daemon.end_all();
        let _ = daemon.run();
        return Err(Error::Share(reason));
    }
    daemon.run()
}

/// The sockets that the service manager has passed, by their names.
fn take_sockets() -> Result<HashMap<String, OwnedFd>, Error> {
    let mut sockets = HashMap::new();
    for (name, number) in activation::named(std::process::id())? {
        let socket = adopt(number).and_then(|socket| {
            rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
            Ok(socket)
        });
        let socket = socket.map_err(|source| Error::Socket {
            name: name.clone(),
            source,
        })?;
        if sockets.insert(name.clone(), socket).is_some() {
            return Err(Error::TwoSockets(name));
        }
    }
    Ok(sockets)
}

fn metrics_path(options: &StatusOptions) -> Option<PathBuf> {
    match &options.metrics {
        Some(MetricsAddress::Path(path)) => Some(path.clone()),
        _ => None,
    }
}

/// An error of a plan as one of the command line.
#[must_use]
pub fn refuse(error: &Error) -> EarlyExit {
    Args::refuse(gangplank_service::error_chain(error))
}
