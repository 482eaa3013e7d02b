//! Where messages go: standard error, as much of them as is asked for.

use log::LevelFilter;

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
