//! Where messages go: standard error, or syslog.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;

use log::{Level, LevelFilter, Log, Metadata, Record};
use thiserror::Error;

/// Facility `LOG_USER`, as a priority value carries it (RFC 3164, 4.1.1).
const FACILITY_USER: u8 = 1 << 3;

/// Where programs of the host hand in their syslog messages.
const SYSLOG_SOCKET: &str = "/dev/log";

/// Libraries that write a line for every message or ring entry that is wrong, as often as a frontend cares to send one.
/// What matters of it is said here as well, with a limit.
const LIBRARIES: [&str; 4] = ["vhost", "vhost_user_backend", "virtio_queue", "vm_memory"];

/// How much those libraries may say: nothing, unless somebody is looking for something.
fn library_level(level: LevelFilter) -> LevelFilter {
    if level >= LevelFilter::Debug {
        level
    } else {
        LevelFilter::Off
    }
}

/// What to log, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The least severe level that is logged.
    pub level: LevelFilter,
    /// An env_logger filter, such as `warn,gangplank_backend::device=trace`, that says it in place
    /// of `level` on standard error.
    pub filter: Option<String>,
    /// To syslog instead of standard error.
    pub syslog: bool,
}

/// Logging cannot be started.
#[derive(Debug, Error)]
#[error("cannot start logging: {0}")]
pub struct Error(#[from] log::SetLoggerError);

/// Starts logging for the rest of the process's life.
///
/// Syslog is connected to here, before confinement takes it out of reach. Where that fails,
/// messages go to standard error and the first says why.
///
/// # Errors
/// [`struct@Error`] when a logger is already in place.
pub fn start(options: &Options) -> Result<(), Error> {
    if !options.syslog {
        return start_stderr(options);
    }
    match Syslog::connect(options.level) {
        Ok(syslog) => {
            log::set_boxed_logger(Box::new(syslog))?;
            log::set_max_level(options.level);
            Ok(())
        }
        Err(error) => {
            start_stderr(options)?;
            log::warn!("cannot log to syslog at {SYSLOG_SOCKET}, using standard error: {error}");
            Ok(())
        }
    }
}

fn start_stderr(options: &Options) -> Result<(), Error> {
    let mut builder = env_logger::Builder::new();
    match &options.filter {
        Some(filter) => builder.parse_filters(filter),
        None => {
            for library in LIBRARIES {
                builder.filter_module(library, library_level(options.level));
            }
            builder.filter_level(options.level)
        }
    };
    Ok(builder.try_init()?)
}

/// The host's syslog daemon, by a datagram for each message.
struct Syslog {
    socket: UnixDatagram,
    level: LevelFilter,
    /// The process the operator started; a confined process knows itself by another number.
    pid: u32,
}

impl Syslog {
    fn connect(level: LevelFilter) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SYSLOG_SOCKET)?;
        Ok(Self {
            socket,
            level,
            pid: std::process::id(),
        })
    }
}

impl Log for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let module = metadata.target().split("::").next().unwrap_or_default();
        let level = if LIBRARIES.contains(&module) {
            library_level(self.level)
        } else {
            self.level
        };
        metadata.level() <= level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = syslog_message(self.pid, record);
        if let Err(error) = self.socket.send(message.as_bytes()) {
            // A syslog daemon that was restarted cannot be found again from inside; a message must
            // still not be lost without a trace. Nothing is left to try if this fails too.
            let _ = writeln!(io::stderr(), "{message} (syslog: {error})");
        }
    }

    fn flush(&self) {}
}

/// The message without a time stamp: the daemon stamps what arrives at its socket.
fn syslog_message(pid: u32, record: &Record<'_>) -> String {
    let severity = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    format!(
        "<{}>gangplankd[{pid}]: {} {}: {}",
        FACILITY_USER | severity,
        record.level(),
        record.target(),
        record.args()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syslog_message_carries_priority_process_level_and_target() {
        let record = Record::builder()
            .level(Level::Warn)
            .target("device")
            .args(format_args!("queue stopped"))
            .build();
        assert_eq!(
            syslog_message(7, &record),
            "<12>gangplankd[7]: WARN device: queue stopped"
        );
    }
}
