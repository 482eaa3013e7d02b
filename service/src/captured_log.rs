//! The log of a test's process, kept to be looked at.

use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct CapturedLog;

impl Log for CapturedLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.lock().push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Keeps the messages of level info and above from now on. May be called by several tests.
pub fn start() {
    // Fails if another test has called it.
    let _ = log::set_logger(&CapturedLog);
    log::set_max_level(LevelFilter::Info);
}

/// The messages so far that contain `text`. Other tests of the process log at the same time.
#[must_use]
pub fn count(text: &str) -> usize {
    count_all(&[text])
}

/// The messages so far that contain all of `texts`.
#[must_use]
pub fn count_all(texts: &[&str]) -> usize {
    LINES
        .lock()
        .iter()
        .filter(|line| texts.iter().all(|text| line.contains(text)))
        .count()
}
