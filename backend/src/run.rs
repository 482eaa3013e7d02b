//! Runs the daemon: acquires resources, drops permissions, serves the share, in this order.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use gangplank_service::fd_store::FdStore;
use gangplank_service::signals::{STATUS, Signal, Signals, TERMINATION};
use gangplank_service::{error_chain, logging, readiness};
use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use crate::acceptor::{self, HostLimits, Means, Predecessor};
use crate::config::{self, Config};
use crate::handover::Takeover;
use crate::handover::channel::{Channel, Message};
use crate::handover::inherited::Supervised;
use crate::handover::program::Program;
use crate::handover::reload::{Reloader, SERVING};
use crate::holder::comeback::Found;
use crate::holder::place;
use crate::holder::store::Holding;
use crate::passthrough::options::{InodeFileHandles, Locks};
use crate::quota;
use crate::sandbox::{self, Confined, Role, Start, rlimit};
use crate::shares::member;
use crate::socket::{self, Files, Listening, Source};
use crate::start_line::StartLine;
use crate::status::sockets::{self, Listeners, Sockets};
use crate::storage::kind::Reach;
use crate::storage::probe::Writing;
use crate::storage::{self, Storage};
use crate::supervisor::{self, Held, Supervisor};
use crate::sys::process;
use crate::trace;

/// Why the daemon does not start, or stops.
#[derive(Debug, Error)]
pub enum Error {
    /// Logging does not start.
    #[error(transparent)]
    Logging(#[from] logging::Error),
    /// The socket cannot be used.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// The sandbox cannot be entered.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// The confined processes cannot be supervised.
    #[error(transparent)]
    Supervise(#[from] supervisor::Error),
    /// The process cannot wait for signals.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    /// `--inode-file-handles=mandatory` without the permission to open files by handle.
    #[error(
        "--inode-file-handles=mandatory: opening files by handle is not permitted; it takes \
         CAP_DAC_READ_SEARCH on the host. Pass prefer or never instead"
    )]
    NoFileHandles,
    /// The storage is not known.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The storage does not fit the options.
    #[error(transparent)]
    Settle(#[from] config::Error),
    /// The file by which a test has workers die cannot be used.
    #[cfg(feature = "crash-hook")]
    #[error("cannot use the file of {}", crate::crash_hook::VARIABLE)]
    CrashHook(#[source] std::io::Error),
    /// What another program of this process has passed is out of reach.
    #[error("cannot go on where the program before has ended")]
    Inherit(#[source] std::io::Error),
    /// The guests that were held are not handed over.
    #[error("cannot go on with the guests that were held")]
    ComeBack(#[source] std::io::Error),
    /// `--holder` without a holder.
    #[error(transparent)]
    Holder(#[from] place::Error),
    /// The program's file is not found.
    #[error("cannot find the program's own file")]
    Program(#[source] std::io::Error),
    /// The process that has started this one for a share.
    #[error("cannot serve one share of several")]
    Shares(#[source] std::io::Error),
    /// The trace cannot be written.
    #[error(transparent)]
    Trace(#[from] trace::Error),
    /// The share has no quota.
    #[error(transparent)]
    Quota(#[from] quota::Error),
    /// The sockets for status and metrics cannot be used.
    #[error(transparent)]
    Status(#[from] sockets::Error),
    /// Serving fails.
    #[error(transparent)]
    Serve(#[from] acceptor::Error),
}

/// How a process of the daemon begins.
enum Beginning {
    /// The operator has started it.
    First,
    /// A supervisor has started it to take guests over from another program.
    Successor(Option<Takeover>),
    /// It was a supervisor of another program, whose successor serves.
    Supervisor(Option<Supervised>),
}

impl Beginning {
    /// Before the process opens descriptors.
    fn find() -> Result<Self, Error> {
        if let Some(supervised) = Supervised::inherited().map_err(Error::Inherit)? {
            return Ok(Self::Supervisor(Some(supervised)));
        }
        let takeover = Takeover::inherited().map_err(Error::Inherit)?;
        Ok(takeover.map_or(Self::First, |takeover| Self::Successor(Some(takeover))))
    }
}

/// Runs the daemon until a signal stops it or, with `exit_on_disconnect`, the last guest leaves.
/// Returns the exit status of the process.
///
/// The caller must be single-threaded and call this once. If the sandbox forks, it returns in both
/// processes.
///
/// # Errors
/// [`enum@Error`], worded for the operator. With syslog, the error is also logged.
pub fn run(config: Config) -> Result<u8, Error> {
    let syslog = config.logging.syslog;
    let mut beginning = Beginning::find()?;
    let result = prepare(config, &mut beginning);
    if let Err(error) = &result {
        if let Beginning::Successor(Some(takeover)) = &beginning {
            report_failure(&takeover.supervisor, error);
        }
        if syslog {
            log::error!("{}", error_chain(error));
        }
    }
    result
}

/// Tells the supervisor, which waits for this program, why it does not serve.
fn report_failure(supervisor: &Channel, error: &Error) {
    // If this fails, the supervisor has given up.
    let _ = supervisor.send(&Message::failed(&error_chain(error)), &[]);
}

fn prepare(mut config: Config, beginning: &mut Beginning) -> Result<u8, Error> {
    // `--fd` names an inherited descriptor, so this comes before anything that opens descriptors.
    let inherited = match (&config.socket, &*beginning) {
        (Source::Fd(fd), Beginning::First) => Some(socket::inherit(*fd)?),
        _ => None,
    };

    if !matches!(beginning, Beginning::Successor(_)) {
        member::end_with_the_daemon().map_err(Error::Shares)?;
    }

    // So does this. With `--holder`, another program has what is held.
    let found = match &*beginning {
        Beginning::First if config.holder.is_none() => {
            Found::inherited().map_err(Error::Inherit)?
        }
        _ => Found::default(),
    };

    let mut status = match &*beginning {
        Beginning::First => Sockets::default(),
        _ => Sockets::inherit(&config.status)?,
    };

    logging::start(&config.logging)?;
    #[cfg(feature = "crash-hook")]
    crate::crash_hook::start().map_err(Error::CrashHook)?;
    if matches!(beginning, Beginning::First) {
        for deprecation in &config.deprecations {
            log::warn!("{deprecation}");
        }
    }

    // A supervisor has raised it before.
    if !matches!(beginning, Beginning::Supervisor(_)) {
        let limit = rlimit::raise_open_files(config.sandbox.rlimit_nofile)?;
        config.open_files = Some(limit);
        let regions = config.device.max_memory_regions.into();
        config.passthrough.fd_budget = rlimit::fd_budget(limit, config.device.rings(), regions);
        log::debug!(
            "each guest's limit of open descriptors is {limit}, its files may hold {} of them",
            config.passthrough.fd_budget
        );
    }

    // Before other threads or processes, and not again for a supervisor, whose acceptor serves.
    if !matches!(beginning, Beginning::Supervisor(_)) {
        let writing = match config.passthrough.readonly {
            true => Writing::Forbidden,
            false => Writing::Allowed,
        };
        if let Some(storage) = storage::find(&config.shared_dir, writing, storage::child::LIMIT)? {
            config.settle(storage)?;
        }
    }

    if let Some(path) = &config.trace
        && !matches!(beginning, Beginning::Supervisor(_))
    {
        trace::open(path)?;
    }
    process::set_signal_dispositions().map_err(Error::Signals)?;
    let wanted = TERMINATION.into_iter().chain(STATUS);
    let wanted = wanted.chain([Signal::SIGCHLD]);
    let signals = Signals::block(wanted).map_err(Error::Signals)?;
    let program = Program::running().map_err(Error::Program)?;
    match beginning {
        Beginning::Successor(takeover) => match takeover.take() {
            Some(takeover) => succeed(&config, takeover, signals, status.into_listeners()),
            None => Ok(0),
        },
        Beginning::Supervisor(supervised) => match supervised.take() {
            Some(supervised) => supervise_on(&config, supervised, &signals, program, status),
            None => Ok(0),
        },
        Beginning::First => {
            // The confined processes may not.
            quota::apply(config.quota, &config.shared_dir)?;
            let listening = match (inherited, &config.socket) {
                (Some(listening), _) => listening,
                (None, Source::Path { path, group }) => socket::bind(path, group.as_deref())?,
                (None, Source::Fd(fd)) => socket::inherit(*fd)?,
            };
            let Listening { listener, files } = listening;
            // The pid file is locked: no other daemon of this socket runs.
            let opened = place::open(&config, found).map_err(Error::from);
            let bound = opened.and_then(|opened| Ok((opened, Sockets::bind(&config.status)?)));
            let (store, found) = match bound {
                Ok((opened, bound)) => {
                    status = bound;
                    opened
                }
                Err(error) => {
                    if let Some(files) = files {
                        files.remove();
                    }
                    return Err(error);
                }
            };
            let listening = Listening { listener, files };
            serve(&config, listening, (store, found), signals, program, status)
        }
    }
}

fn serve(
    config: &Config,
    listening: Listening,
    (store, mut found): (FdStore, Found),
    signals: Signals,
    mut program: Program,
    status: Sockets,
) -> Result<u8, Error> {
    let Listening { listener, files } = listening;
    let mut holding = Holding::new(store);
    found.check(&mut holding);
    let user_namespace = found.users.take();
    let (guests, connections) = (found.guests(), found.connections());
    let (played, predecessor) = Channel::pair().map_err(Error::ComeBack)?;
    // The confined process cannot read them.
    let host_limits = HostLimits::read();
    let handles = config.passthrough.inode_file_handles;
    let confined = sandbox::confine(
        &config.sandbox,
        handles,
        &config.shared_dir,
        Start::First { user_namespace },
    );
    match confined {
        Ok(Role::Supervisor(acceptor, channel)) => {
            // The acceptor passes it back when it serves.
            drop((listener, predecessor));
            hand_on(&mut program, &status)?;
            let held = Held {
                holding,
                connections,
                ..Held::default()
            };
            let mut supervisor = Supervisor::new(acceptor, channel, held)?;
            if guests > 0 {
                let handed = found.hand_over(&played, &mut supervisor);
                handed.map_err(Error::ComeBack)?;
            }
            drop(played);
            let reloader = Reloader {
                program,
                files,
                count: 0,
            };
            supervise(config, supervisor, reloader, &signals, status)
        }
        Ok(Role::Acceptor(confined, supervisor)) => {
            // The socket's files lie outside of the sandbox; the supervisor removes them.
            drop((files, found, played, holding));
            let guests = u32::try_from(guests).unwrap_or(u32::MAX);
            let predecessor =
                (guests > 0).then(|| Predecessor::held(predecessor, guests, connections));
            let acceptor = Serving {
                listener,
                confined,
                host_limits,
                supervisor,
                signals,
                status: status.into_listeners(),
            };
            acceptor.serve(config, predecessor)
        }
        Ok(Role::Launcher(_)) => Ok(0),
        Err(error) => {
            // In the process that the operator started, or in the confined one, whose supervisor
            // then removes the files as well.
            if let Some(files) = files {
                files.remove();
            }
            status.remove();
            Err(error.into())
        }
    }
}

/// Has the programs that this process starts and becomes inherit the sockets.
fn hand_on(program: &mut Program, status: &Sockets) -> Result<(), Error> {
    status.pass_on().map_err(Error::Inherit)?;
    program.pass_status(status.passed());
    Ok(())
}

/// Serves in place of another program, whose guests it takes over.
fn succeed(
    config: &Config,
    takeover: Takeover,
    signals: Signals,
    status: Listeners,
) -> Result<u8, Error> {
    let Takeover {
        supervisor,
        predecessor,
    } = takeover;
    // No copy of it may stay in the acceptor: keepers need the numbers of descriptors.
    let launcher = supervisor.as_fd().try_clone_to_owned();
    let launcher = Channel::new(launcher.map_err(Error::Inherit)?);
    let begun = begin(config, supervisor, predecessor);
    let begun = begun.inspect_err(|error| report_failure(&launcher, error))?;
    match begun.role {
        Role::Launcher(acceptor) => {
            let acceptor = acceptor.as_raw_nonzero().get();
            let started = Message::Started { acceptor };
            let sent = launcher.send(&started, &[begun.program.as_fd()]);
            sent.map(|()| 0).map_err(Error::Inherit)
        }
        Role::Acceptor(confined, supervisor) => {
            drop((launcher, begun.program));
            let acceptor = Serving {
                listener: begun.listener,
                confined,
                host_limits: begun.host_limits,
                supervisor,
                signals,
                status,
            };
            acceptor.serve(config, Some(begun.predecessor))
        }
        // Only the first program makes one.
        Role::Supervisor(..) => Ok(0),
    }
}

/// What a new program has after its acceptor was confined, in either process.
struct Begun {
    role: Role,
    listener: UnixListener,
    predecessor: Predecessor,
    host_limits: HostLimits,
    /// The program's file.
    program: OwnedFd,
}

fn begin(config: &Config, supervisor: Channel, predecessor: Channel) -> Result<Begun, Error> {
    let (predecessor, greeting) = Predecessor::meet(predecessor)?;
    let host_limits = HostLimits::read();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let program = rustix::fs::open("/proc/self/exe", flags, Mode::empty());
    let program = program.map_err(|error| Error::Program(error.into()))?;
    let start = Start::Successor {
        supervisor,
        user_namespace: greeting.user_namespace,
    };
    let handles = config.passthrough.inode_file_handles;
    Ok(Begun {
        role: sandbox::confine(&config.sandbox, handles, &config.shared_dir, start)?,
        listener: greeting.listener.into(),
        predecessor,
        host_limits,
        program,
    })
}

/// Supervises what this process supervised before it became this program.
fn supervise_on(
    config: &Config,
    supervised: Supervised,
    signals: &Signals,
    mut program: Program,
    status: Sockets,
) -> Result<u8, Error> {
    hand_on(&mut program, &status)?;
    let Supervised {
        channel,
        acceptor,
        mut held,
        lock,
        socket,
        count,
        store,
    } = supervised;
    held.holding.set_store(place::resume(config, store));
    // Otherwise lists of processes have the number of the program's descriptor.
    let _ = rustix::thread::set_name(c"gangplankd");
    let files = match (&config.socket, lock) {
        (Source::Path { path, .. }, Some(lock)) => Some(Files::inherit(path, lock, socket)?),
        _ => None,
    };
    let reloader = Reloader {
        program,
        files,
        count,
    };
    let supervisor = Supervisor::new(acceptor, channel, held)?;
    supervise(config, supervisor, reloader, signals, status)
}

fn supervise(
    config: &Config,
    supervisor: Supervisor,
    mut reloader: Reloader,
    signals: &Signals,
    status: Sockets,
) -> Result<u8, Error> {
    let serving = || readiness::ready(SERVING);
    let result = supervisor.supervise(signals, &mut reloader, config.max_crashes, serving);
    readiness::stopping();
    if let Some(files) = reloader.files {
        files.remove();
    }
    status.remove();
    Ok(result?)
}

/// What the acceptor serves with.
struct Serving {
    listener: UnixListener,
    confined: Confined,
    host_limits: HostLimits,
    supervisor: Channel,
    signals: Signals,
    status: Listeners,
}

impl Serving {
    fn serve(self, config: &Config, predecessor: Option<Predecessor>) -> Result<u8, Error> {
        // For lists of processes.
        let _ = rustix::thread::set_name(c"acceptor");
        let confined = self.confined;
        let abilities = log_abilities(config, &confined);
        abilities.inspect_err(|error| report_failure(&self.supervisor, error))?;
        let max_guests = config
            .max_guests
            .unwrap_or_else(|| self.host_limits.max_guests(&config.device));
        if let Some(storage) = &config.storage {
            log::info!("storage: {storage}");
            warn_of(config, storage);
        }
        log::info!("{}", StartLine { config, max_guests });
        let means = Means {
            listener: self.listener,
            confined,
            signals: self.signals,
            config,
            max_guests,
            supervisor: self.supervisor,
            has_holder: place::is_there(config),
            status: self.status,
        };
        acceptor::accept_guests(means, predecessor)?;
        log::info!("the daemon has ended");
        Ok(0)
    }
}

/// What the operator should know beside the facts.
fn warn_of(config: &Config, storage: &Storage) {
    let is_shared = storage.reach == Reach::Hosts;
    match config.passthrough.locks {
        Locks::Guest if is_shared && !config.left_open.locks => {
            log::warn!("other hosts have these files, and --locks=guest keeps locks in each guest");
        }
        Locks::Guest if is_shared => {
            log::warn!("other hosts have these files, and locks cannot be taken on them");
        }
        Locks::Host if is_shared && !storage.locks_reach_other_hosts => {
            log::warn!("other hosts have these files, and do not see this host's locks");
        }
        _ => {}
    }
    if storage.abilities.inode_numbers == Some(false) {
        log::warn!(
            "the file system makes inode numbers up as it meets files: a file that is found again \
             by name may count as another one"
        );
    }
}

fn log_abilities(config: &Config, confined: &Confined) -> Result<(), Error> {
    match config.passthrough.inode_file_handles {
        InodeFileHandles::Mandatory if !confined.abilities.can_open_by_handle => {
            return Err(Error::NoFileHandles);
        }
        InodeFileHandles::Prefer if !confined.abilities.can_open_by_handle => {
            log::info!(
                "files are not opened by handle: when descriptors run short, the daemon reopens \
                 them by name"
            );
        }
        _ => {}
    }
    if !confined.abilities.can_change_credentials {
        log::info!(
            "changing users is not permitted: the daemon's user does everything for all guest \
             users and owns the files they create"
        );
    }
    Ok(())
}
