//! From a configuration to a served share: what is gathered and what is given up, in order.

use std::os::unix::net::UnixListener;

use thiserror::Error;

use crate::config::Config;
use crate::passthrough::options::InodeFileHandles;
use crate::sandbox::options::Mode;
use crate::sandbox::{self, Confined, Role, rlimit};
use crate::socket::{self, Listening, Source};
use crate::sys::signal::TerminationSignals;
use crate::{logging, serve};

/// Why the daemon does not serve, or serves no longer.
#[derive(Debug, Error)]
pub enum Error {
    /// No log.
    #[error(transparent)]
    Logging(#[from] logging::Error),
    /// No socket.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// No confinement.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    /// Handles were demanded.
    #[error(
        "--inode-file-handles=mandatory: opening files by handle is not permitted here; it takes \
         CAP_DAC_READ_SEARCH on the host. Pass prefer or never instead"
    )]
    NoFileHandles,
    /// Serving ended in an error.
    #[error(transparent)]
    Serve(#[from] serve::Error),
}

/// Runs the daemon until it is told to end or its work is done. Returns the exit status to leave
/// with.
///
/// To be called once, with a single thread. Where the sandbox takes a process of its own, this
/// returns in both.
///
/// # Errors
/// [`enum@Error`], worded for the operator; also written to the log where that is not standard error.
pub fn run(config: Config) -> Result<u8, Error> {
    let syslog = config.logging.syslog;
    let result = prepare(config);
    if let Err(error) = &result
        && syslog
    {
        log::error!("{}", logging::in_full(error));
    }
    result
}

fn prepare(mut config: Config) -> Result<u8, Error> {
    // The number on the command line means what the process was started with, so this comes
    // before anything that opens descriptors.
    let inherited = match &config.socket {
        Source::Fd(fd) => Some(socket::inherit(*fd)?),
        Source::Path { .. } => None,
    };

    logging::start(&config.logging)?;
    for deprecation in &config.deprecations {
        log::warn!("{deprecation}");
    }

    let limit = rlimit::raise_open_files(config.sandbox.rlimit_nofile)?;
    config.passthrough.fd_budget = rlimit::fd_budget(limit);
    let for_guests = limit.saturating_sub(config.passthrough.fd_budget);
    config.device.max_guests = config.device.guests_for(for_guests);
    log::debug!(
        "{limit} descriptors may be open, {} of them the file system's",
        config.passthrough.fd_budget
    );

    let signals = TerminationSignals::block().map_err(Error::Signals)?;
    let listening = match (inherited, &config.socket) {
        (Some(listening), _) => listening,
        (None, Source::Path { path, group }) => socket::bind(path, group.as_deref())?,
        (None, Source::Fd(fd)) => socket::inherit(*fd)?,
    };
    confine_and_serve(&config, listening, &signals)
}

fn confine_and_serve(
    config: &Config,
    listening: Listening,
    signals: &TerminationSignals,
) -> Result<u8, Error> {
    let Listening { listener, files } = listening;
    let handles = config.passthrough.inode_file_handles;
    let keep_handles = handles != InodeFileHandles::Never;
    let result = match sandbox::confine(&config.sandbox, keep_handles, &config.shared_dir) {
        Ok(Role::Supervisor(supervisor)) => {
            // Only the confined process accepts, and the socket closes with it.
            drop(listener);
            supervisor.wait(signals).map_err(Error::from)
        }
        Ok(Role::Confined(confined)) if config.sandbox.mode == Mode::None => {
            serve_share(config, listener, confined, signals)
        }
        Ok(Role::Confined(confined)) => {
            // They lead out of the sandbox; the process outside removes them.
            drop(files);
            return serve_share(config, listener, confined, signals);
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
    share: Confined,
    signals: &TerminationSignals,
) -> Result<u8, Error> {
    match config.passthrough.inode_file_handles {
        InodeFileHandles::Mandatory if !share.can_open_by_handle => {
            return Err(Error::NoFileHandles);
        }
        InodeFileHandles::Prefer if !share.can_open_by_handle => {
            log::info!(
                "files cannot be opened by handle here; they are found again by name where descriptors run short"
            );
        }
        _ => {}
    }
    if !share.can_change_credentials {
        log::info!("guests' users cannot be taken on here; all files are this user's");
    }
    log::info!(
        "sharing {:?} as {:?}, waiting for guests",
        config.shared_dir,
        config.device.tag
    );
    serve::serve(&listener, share, config, signals)?;
    log::info!("done");
    Ok(0)
}
