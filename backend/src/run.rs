//! Runs the daemon: acquires resources, drops permissions, serves the share, in this order.

use std::os::unix::net::UnixListener;

use gangplank_service::signals::{Signal, Signals, TERMINATION};
use gangplank_service::{error_chain, logging};
use thiserror::Error;

use crate::acceptor::{self, HostLimits};
use crate::config::Config;
use crate::passthrough::options::InodeFileHandles;
use crate::sandbox::options::Mode;
use crate::sandbox::{self, Confined, Role, rlimit};
use crate::socket::{self, Files, Listening, Source};
use crate::sys::process;

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
    /// The process cannot wait for signals.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    /// `--inode-file-handles=mandatory` without the permission to open files by handle.
    #[error(
        "--inode-file-handles=mandatory: opening files by handle is not permitted; it takes \
         CAP_DAC_READ_SEARCH on the host. Pass prefer or never instead"
    )]
    NoFileHandles,
    /// The file by which a test has workers die cannot be used.
    #[cfg(feature = "crash-hook")]
    #[error("cannot use the file of {}", crate::crash_hook::VARIABLE)]
    CrashHook(#[source] std::io::Error),
    /// Serving fails.
    #[error(transparent)]
    Serve(#[from] acceptor::Error),
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
    let result = prepare(config);
    if let Err(error) = &result
        && syslog
    {
        log::error!("{}", error_chain(error));
    }
    result
}

fn prepare(mut config: Config) -> Result<u8, Error> {
    // `--fd` names an inherited descriptor, so this comes before anything that opens descriptors.
    let inherited = match &config.socket {
        Source::Fd(fd) => Some(socket::inherit(*fd)?),
        Source::Path { .. } => None,
    };

    logging::start(&config.logging)?;
    #[cfg(feature = "crash-hook")]
    crate::crash_hook::start().map_err(Error::CrashHook)?;
    for deprecation in &config.deprecations {
        log::warn!("{deprecation}");
    }

    let limit = rlimit::raise_open_files(config.sandbox.rlimit_nofile)?;
    let regions = config.device.max_memory_regions.into();
    config.passthrough.fd_budget = rlimit::fd_budget(limit, config.device.rings(), regions);
    log::debug!(
        "each guest's limit of open descriptors is {limit}, its files may hold {} of them",
        config.passthrough.fd_budget
    );

    process::set_signal_dispositions().map_err(Error::Signals)?;
    let wanted = TERMINATION.into_iter().chain([Signal::SIGCHLD]);
    let signals = Signals::block(wanted).map_err(Error::Signals)?;
    let listening = match (inherited, &config.socket) {
        (Some(listening), _) => listening,
        (None, Source::Path { path, group }) => socket::bind(path, group.as_deref())?,
        (None, Source::Fd(fd)) => socket::inherit(*fd)?,
    };
    confine_and_serve(&config, listening, signals)
}

fn confine_and_serve(config: &Config, listening: Listening, signals: Signals) -> Result<u8, Error> {
    let Listening {
        listener,
        mut files,
    } = listening;
    // The confined process cannot read them.
    let host_limits = HostLimits::read();
    let handles = config.passthrough.inode_file_handles;
    let result = match sandbox::confine(&config.sandbox, handles, &config.shared_dir) {
        Ok(Role::Supervisor(supervisor)) => {
            // Only the confined process accepts connections, and the socket closes with it.
            drop(listener);
            supervisor.wait(&signals).map_err(Error::from)
        }
        Ok(Role::Acceptor(confined)) if config.sandbox.mode == Mode::None => {
            serve_share(config, listener, confined, host_limits, &mut files, signals)
        }
        Ok(Role::Acceptor(confined)) => {
            // The socket's files lie outside of the sandbox; the supervisor removes them.
            drop(files);
            return serve_share(config, listener, confined, host_limits, &mut None, signals);
        }
        Err(error) => Err(error.into()),
    };
    if let Some(files) = files {
        files.remove();
    }
    result
}

fn serve_share(
    config: &Config,
    listener: UnixListener,
    confined: Confined,
    host_limits: HostLimits,
    files: &mut Option<Files>,
    signals: Signals,
) -> Result<u8, Error> {
    match config.passthrough.inode_file_handles {
        InodeFileHandles::Mandatory if !confined.abilities.can_open_by_handle => {
            return Err(Error::NoFileHandles);
        }
        InodeFileHandles::Prefer if !confined.abilities.can_open_by_handle => {
            log::info!(
                "files are not opened by handle: when descriptors run short, the daemon reopens them \
                 by name"
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
    let max_guests = config
        .max_guests
        .unwrap_or_else(|| host_limits.max_guests(config.device.rings()));
    log::info!(
        "sharing {:?} as {:?}, waiting for guests, at most {max_guests} at a time",
        config.shared_dir,
        config.device.tag
    );
    acceptor::accept_guests(listener, confined, max_guests, config, files, signals)?;
    log::info!("the daemon has ended");
    Ok(0)
}
