//! The device model as a program: serves the devices of a configuration until a signal ends it.
//!
//! The main thread starts everything. It then waits for a signal, a status request, or the end of a
//! device. A device that cannot be started or ends does not affect the others; the program runs
//! while one is served.

mod devices;
mod status;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use gangplank_service::error_chain;
use gangplank_service::logging::LinePrefix;
use gangplank_service::output::Output;
use gangplank_service::rate_limit::RateLimit;
use gangplank_service::rlimit::raise_descriptor_limit;
use gangplank_service::signals::{Signal, Signals, TERMINATION};
use gangplank_service::{logging, readiness};
use log::{LevelFilter, error, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::args::ModelArgs;
use crate::config::{Config, ConfigError};
use crate::fd_store::FdStoreError;
use crate::hypervisor_driver::HypervisorError;
use devices::Devices;
use status::StatusSocket;

/// How the program has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Everything that was configured was served until the end.
    Done,
    /// A device could not be served, or ended early; the log has the reason.
    Failed,
}

/// Why no device was served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The plan could not be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// Logging cannot be started.
    #[error(transparent)]
    Logging(#[from] logging::Error),
    /// The status socket cannot be made.
    #[error("cannot listen on {} for status requests", path.display())]
    Status {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No hypervisor's driver can be opened.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// No process keeps the devices over a restart.
    #[error(transparent)]
    FdStore(#[from] FdStoreError),
    /// The host refused a resource.
    #[error("cannot wait for {what}")]
    System {
        /// What the program was to wait for.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The exit status: 2 if the command line or the configuration is wrong, 1 otherwise.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}

/// Time between two attempts to connect to an fd store after the previous one has gone.
const FD_STORE_RETRY_INTERVAL: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Serves the devices of the configuration at `config`, or only checks it and writes the plan to
/// `out`. `filter` is an env_logger filter that overrides every other log level.
///
/// Must be called once, before any thread is started.
///
/// # Errors
/// [`enum@Error`], if no device was tried.
pub fn run(
    config: &Path,
    args: &ModelArgs,
    filter: Option<&str>,
    mut out: Output,
) -> Result<Outcome, Error> {
    let config = Config::load(config)?;
    if args.check {
        write!(out, "{config}").map_err(Error::Output)?;
        out.close().map_err(Error::Output)?;
        return Ok(Outcome::Done);
    }
    let level = args.log_level.or(config.log_level);
    logging::start(&logging::Options {
        filter: filter.map(str::to_owned),
        // A device's threads are named after it.
        prefix: LinePrefix::Thread,
        ..logging::Options::new("gangplank-frontend", level.unwrap_or(LevelFilter::Info))
    })?;
    let signals = Signals::block(TERMINATION.into_iter().chain([Signal::SIGUSR1]));
    let signals = signals.map_err(|source| Error::System {
        what: "signals",
        source,
    })?;
    let status = match &args.status_socket {
        None => None,
        Some(path) => Some(StatusSocket::bind(path).map_err(|source| Error::Status {
            path: path.clone(),
            source,
        })?),
    };
    raise_descriptor_limit();
    let mut devices = Devices::start(&config, args.holder.as_deref())?;
    if devices.alive() > 0 {
        let summary = format!(
            "{} of {} devices are served",
            devices.alive(),
            config.devices.len()
        );
        info!("ready: {summary}");
        readiness::ready(&summary);
        serve(&mut devices, &signals, status.as_ref())?;
        readiness::stopping();
    }
    let outcome = match devices.failed() {
        0 => Outcome::Done,
        _ => Outcome::Failed,
    };
    let complaint = RateLimit::once();
    while devices.has_unsaved_descriptors() {
        if !reconnect_fd_store(&devices, &complaint) {
            thread::sleep(Duration::from_secs(1));
        }
    }
    devices.end();
    info!("done");
    Ok(outcome)
}

/// Serves until a signal ends the program, or no device is left.
fn serve(
    devices: &mut Devices,
    signals: &Signals,
    status: Option<&StatusSocket>,
) -> Result<(), Error> {
    let system = |source| Error::System {
        what: "signals and devices",
        source,
    };
    let mut is_connected = true;
    let complaint = RateLimit::once();
    while devices.alive() > 0 {
        let mut awaited = vec![PollFd::new(signals, PollFlags::IN)];
        awaited.extend(status.map(|status| PollFd::new(status, PollFlags::IN)));
        let holder = devices.fd_store_connection();
        awaited.extend(is_connected.then(|| PollFd::new(&holder, PollFlags::RDHUP)));
        let at_store_index = awaited.len();
        let ended_fds: Vec<_> = devices.ended_fds().collect();
        awaited.extend(ended_fds.iter().map(|end| PollFd::new(end, PollFlags::IN)));
        let pause = (!is_connected).then_some(&FD_STORE_RETRY_INTERVAL);
        match poll(&mut awaited, pause) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(system(error.into())),
        }
        let at_store = awaited.get(at_store_index.saturating_sub(1));
        let store_gone = is_connected && at_store.is_some_and(|at| !at.revents().is_empty());
        drop(awaited);
        drop(ended_fds);
        if store_gone {
            warn!("the process that keeps the devices has gone, or does not answer");
        }
        if store_gone || !is_connected {
            is_connected = reconnect_fd_store(devices, &complaint);
        }
        devices.mark_ended();
        if let Some(status) = status {
            status.answer(|| devices.to_string());
        }
        while let Some(signal) = signals.take().map_err(system)? {
            if signal != Signal::SIGUSR1 {
                info!("told to end by {signal}");
                return Ok(());
            }
            devices.to_string().lines().for_each(|line| info!("{line}"));
        }
    }
    error!("no device is left to serve");
    Ok(())
}

/// Whether an fd store answers.
fn reconnect_fd_store(devices: &Devices, complaint: &RateLimit) -> bool {
    match devices.reconnect_fd_store() {
        Ok(()) => {
            info!("the devices are kept again");
            true
        }
        Err(error) => {
            if complaint.admit().is_some() {
                let why = error_chain(&error);
                error!("nothing keeps the devices, so this program must not end: {why}");
            }
            false
        }
    }
}
