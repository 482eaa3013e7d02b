//! Where messages go: standard error, as much of them as is asked for.

use std::io::{self, Write};
use std::thread;

use env_logger::fmt::Formatter;
use log::{LevelFilter, Record};

/// Libraries that write a line for every message that is wrong. What matters of it is said here as well.
const LIBRARIES: [&str; 2] = ["vhost", "vm_memory"];

/// Starts logging for the rest of the process's life. A `filter` in env_logger's form, such as
/// `warn,gangplank_frontend::mmio=trace`, says it in place of `level`.
///
/// # Errors
/// Somebody else logs already.
pub(crate) fn start(level: LevelFilter, filter: Option<&str>) -> Result<(), log::SetLoggerError> {
    let mut builder = env_logger::Builder::new();
    match filter {
        Some(filter) => builder.parse_filters(filter),
        None => {
            for library in LIBRARIES {
                builder.filter_module(library, library_level(level));
            }
            builder.filter_level(level)
        }
    };
    builder.format(write_line);
    builder.try_init()
}

/// How much those libraries may say: nothing, unless somebody is looking for something.
fn library_level(level: LevelFilter) -> LevelFilter {
    if level >= LevelFilter::Debug {
        level
    } else {
        LevelFilter::Off
    }
}

/// When, how serious, on which thread: those of a device are called after it.
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
