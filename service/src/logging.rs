//! Logs to standard error, to systemd's journal where that is standard error, or to syslog.

mod guest;
mod journal;

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Log, Metadata, Record};
use thiserror::Error;

use self::guest::NamesGuest;
pub use self::guest::set_guest;
use self::journal::{Journal, JournalLog};

/// Facility `LOG_USER`, as a priority value carries it (RFC 3164, 4.1.1).
const FACILITY_USER: u8 = 1 << 3;

/// The socket to which programs of the host send their syslog messages.
const SYSLOG_SOCKET: &str = "/dev/log";

/// Libraries that log a line for every wrong message or ring entry, as often as a peer sends one.
/// Our programs log the important ones themselves, with a rate limit.
const LIBRARIES: [&str; 4] = ["vhost", "vhost_user_backend", "virtio_queue", "vm_memory"];

/// The level of those libraries: off, unless the program logs at debug level.
fn library_level(level: LevelFilter) -> LevelFilter {
    if level >= LevelFilter::Debug {
        level
    } else {
        LevelFilter::Off
    }
}

/// What a line on standard error begins with, after the time and the level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinePrefix {
    /// The module that logs.
    #[default]
    Module,
    /// The thread that logs, if it is not the main thread.
    Thread,
}

/// What to log, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The program's name in syslog messages.
    pub program: &'static str,
    /// Which one of several of the program logs. Messages begin with it, and the journal has it in
    /// the field `GANGPLANK_SHARE`.
    pub instance: Option<String>,
    /// The least severe level that is logged.
    pub level: LevelFilter,
    /// An env_logger filter, such as `warn,gangplank_backend::device=trace`, that replaces `level`
    /// on standard error.
    pub filter: Option<String>,
    /// Whether messages go to syslog instead of standard error.
    pub syslog: bool,
    /// Whether [`leave_stderr`] will be called.
    pub leaves_stderr: bool,
    /// What lines on standard error begin with.
    pub prefix: LinePrefix,
    /// Levels of single modules, unless `filter` is given.
    pub modules: Vec<(&'static str, LevelFilter)>,
}

impl Options {
    /// Everything of `program` up to `level`, on standard error.
    #[must_use]
    pub fn new(program: &'static str, level: LevelFilter) -> Self {
        Self {
            program,
            instance: None,
            level,
            filter: None,
            syslog: false,
            leaves_stderr: false,
            prefix: LinePrefix::default(),
            modules: Vec::new(),
        }
    }

    /// What `program` logs with `typed`, the level of its command line, and `filter`, the value of
    /// `RUST_LOG`: the command line wins, and without either it is info.
    #[must_use]
    pub fn chosen(
        program: &'static str,
        typed: Option<LevelFilter>,
        filter: Option<String>,
    ) -> Self {
        Self {
            filter: filter.filter(|_| typed.is_none()),
            ..Self::new(program, typed.unwrap_or(LevelFilter::Info))
        }
    }
}

/// Logging cannot be started.
#[derive(Debug, Error)]
#[error("cannot start logging")]
pub struct Error(#[from] log::SetLoggerError);

/// Starts logging for the rest of the process's life.
///
/// Connects to syslog or the journal here, before confinement puts it out of reach. If that fails,
/// messages go to standard error, and the first one says why; those for the journal begin with
/// their priority.
///
/// # Errors
/// [`struct@Error`] if a logger is already in place.
pub fn start(options: &Options) -> Result<(), Error> {
    if !options.syslog {
        return start_stderr(options);
    }
    match Syslog::connect(options) {
        Ok(syslog) => log_to(syslog, options.level),
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
        Some(filter) => {
            builder.parse_filters(filter);
        }
        None => {
            builder.filter_level(options.level);
            for library in LIBRARIES {
                builder.filter_module(library, library_level(options.level));
            }
            for (module, level) in &options.modules {
                builder.filter_module(module, *level);
            }
        }
    }
    if options.prefix == LinePrefix::Thread {
        builder.format(write_line);
    }
    if let Some(instance) = options.instance.clone() {
        builder.format(move |out, record| {
            let (time, level) = (out.timestamp_seconds(), record.level());
            let (target, text) = (record.target(), record.args());
            writeln!(out, "[{time} {level:<5} {target}] {instance}: {text}")
        });
    }
    if let Some(journal) = Journal::of_stderr() {
        let filter = builder.build();
        let level = filter.filter();
        let log = JournalLog {
            journal,
            filter,
            program: options.program,
            instance: options.instance.clone(),
            pid: std::process::id(),
        };
        return log_to(log, level);
    }
    let stderr = builder.build();
    let level = stderr.filter();
    if !options.leaves_stderr {
        return log_to(stderr, level);
    }
    let log = Leaving {
        stderr,
        syslog: Syslog::connect(options).ok(),
    };
    log_to(log, level.max(options.level))
}

/// Has all messages up to `level` go to `log`.
fn log_to(log: impl Log + 'static, level: LevelFilter) -> Result<(), Error> {
    log::set_boxed_logger(Box::new(NamesGuest(log)))?;
    log::set_max_level(level);
    Ok(())
}

/// Writes a status to the log, line by line.
pub fn log_status(text: &str) {
    for line in text.lines().filter(|line| !line.is_empty()) {
        log::info!("status: {line}");
    }
}

/// Whether the process has left its standard error.
static HAS_LEFT: AtomicBool = AtomicBool::new(false);

/// Sends all messages from here on to syslog, or nowhere if the host has none: the process is about
/// to close its standard error. [`Options::leaves_stderr`] must have been set.
pub fn leave_stderr() {
    HAS_LEFT.store(true, Ordering::Relaxed);
}

/// Standard error, and syslog once the process has left that.
struct Leaving {
    stderr: env_logger::Logger,
    /// None if the host has no syslog daemon.
    syslog: Option<Syslog>,
}

impl Leaving {
    fn present(&self) -> Option<&dyn Log> {
        match HAS_LEFT.load(Ordering::Relaxed) {
            true => self.syslog.as_ref().map(|syslog| syslog as &dyn Log),
            false => Some(&self.stderr),
        }
    }
}

impl Log for Leaving {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.present().is_some_and(|log| log.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(log) = self.present() {
            log.log(record);
        }
    }

    fn flush(&self) {}
}

/// A line with the time, the level and the thread.
fn write_line(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let (time, level) = (out.timestamp_millis(), record.level());
    let thread = thread::current();
    match thread.name() {
        Some(name) if name != "main" => {
            writeln!(out, "[{time} {level:<5}] {name}: {}", record.args())
        }
        _ => writeln!(out, "[{time} {level:<5}] {}", record.args()),
    }
}

/// The severity of a level (RFC 3164, 4.1.1; `syslog(3)`).
const fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// The host's syslog daemon. Each message is a datagram.
struct Syslog {
    socket: UnixDatagram,
    program: &'static str,
    instance: Option<String>,
    level: LevelFilter,
    /// The process that the operator has started. A confined process sees another number for
    /// itself.
    pid: u32,
}

impl Syslog {
    fn connect(options: &Options) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SYSLOG_SOCKET)?;
        Ok(Self {
            socket,
            program: options.program,
            instance: options.instance.clone(),
            level: options.level,
            pid: std::process::id(),
        })
    }

    /// The message without a time stamp: the syslog daemon adds one.
    fn message(&self, record: &Record<'_>) -> String {
        let instance = self.instance.as_ref();
        let instance = instance.map_or(String::new(), |instance| format!("{instance}: "));
        format!(
            "<{}>{}[{}]: {} {}: {instance}{}",
            FACILITY_USER | severity(record.level()),
            self.program,
            self.pid,
            record.level(),
            record.target(),
            record.args()
        )
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
        let message = self.message(record);
        if let Err(error) = self.socket.send(message.as_bytes()) {
            // A confined process cannot connect to a syslog daemon that was restarted. The message
            // goes to standard error, and if that fails too, nothing is left to try.
            let _ = writeln!(io::stderr(), "{message} (syslog: {error})");
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_environment() {
        let chosen = |typed, filter: Option<&str>| {
            let options = Options::chosen("p", typed, filter.map(str::to_owned));
            (options.level, options.filter)
        };
        let debug = Some(LevelFilter::Debug);
        assert_eq!(chosen(None, None), (LevelFilter::Info, None));
        assert_eq!(chosen(debug, Some("off")), (LevelFilter::Debug, None));
        let (_, filter) = chosen(None, Some("off"));
        assert_eq!(filter.as_deref(), Some("off"));
    }

    #[test]
    fn syslog_message_carries_priority_process_level_and_target() {
        let mut syslog = Syslog {
            socket: UnixDatagram::unbound().unwrap(),
            program: "gangplankd",
            instance: None,
            level: LevelFilter::Info,
            pid: 7,
        };
        let record = Record::builder()
            .level(Level::Warn)
            .target("device")
            .args(format_args!("queue stopped"))
            .build();
        assert_eq!(
            syslog.message(&record),
            "<12>gangplankd[7]: WARN device: queue stopped"
        );
        syslog.instance = Some("home".to_owned());
        assert_eq!(
            syslog.message(&record),
            "<12>gangplankd[7]: WARN device: home: queue stopped"
        );
    }
}
