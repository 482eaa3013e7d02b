//! The device model as a program: serves the devices of a configuration until a signal ends it.
//!
//! The main thread starts everything. It then waits for a signal, a status request, or the end of a
//! device. A device that cannot be started or ends does not affect the others; the program runs
//! while one is served.

mod devices;
mod error;
mod json;
mod main_loop;
mod status;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use gangplank_service::logging::LinePrefix;
use gangplank_service::output::Output;
use gangplank_service::rlimit::raise_descriptor_limit;
use gangplank_service::signals::{STATUS, Signals, TERMINATION};
use gangplank_service::{logging, readiness};
use log::info;

use crate::args::ModelArgs;
use crate::config::{Config, ConfigError};
use crate::fd_store::StartOptions;
use crate::{hypervisors, sandbox};
use devices::Devices;
pub use error::Error;
use status::StatusSocket;

/// How the program has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Everything that was configured was served until the end.
    Done,
    /// A device could not be served, or ended early; the log has the reason.
    Failed,
}

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
    let config = match Config::load(config) {
        Err(ConfigError::Faults { file, faults }) if args.check && args.json => {
            let object = json::faults(&file, &faults);
            writeln!(out, "{object}").map_err(Error::Output)?;
            out.close().map_err(Error::Output)?;
            return Err(ConfigError::Faults { file, faults }.into());
        }
        config => config?,
    };
    if args.check {
        match args.json {
            true => writeln!(out, "{}", json::plan(&config)),
            false => write!(out, "{config}"),
        }
        .map_err(Error::Output)?;
        out.close().map_err(Error::Output)?;
        return Ok(Outcome::Done);
    }
    let level = args.log_level.or(config.log_level);
    logging::start(&logging::Options {
        // A device's threads are named after it.
        prefix: LinePrefix::Thread,
        ..logging::Options::chosen("gangplank-frontend", level, filter.map(str::to_owned))
    })?;
    let signals = Signals::block(TERMINATION.into_iter().chain(STATUS));
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
    let driver = hypervisors::open(&config.nodes)?;
    let start = StartOptions::new(args.seccomp);
    let memory = devices::open_memory(&config);
    sandbox::confine(args.seccomp, args.status_socket.as_deref())?;
    let mut devices = Devices::start(
        &config,
        &*driver,
        memory,
        args.holder.as_deref(),
        start,
        Duration::from_secs(args.daemon_wait.into()),
    )?;
    if devices.alive() > 0 {
        let summary = format!(
            "{} of {} devices are served",
            devices.alive(),
            config.devices.len()
        );
        info!("ready: {summary}");
        readiness::ready(&summary);
        main_loop::serve(&mut devices, &signals, status.as_ref(), args.json)?;
        readiness::stopping();
    }
    let outcome = match devices.failed() {
        0 => Outcome::Done,
        _ => Outcome::Failed,
    };
    main_loop::wait_until_saved(&devices);
    devices.end();
    info!("done");
    Ok(outcome)
}
