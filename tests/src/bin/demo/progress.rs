//! A line on a terminal that shows what the demonstration waits for, and for how long.

use std::io::{self, IsTerminal};
use std::time::Duration;

use gangplank_tests::cache;
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

/// How often the line is drawn.
const TICK: Duration = Duration::from_millis(200);

/// The line, while something is waited for.
static LINE: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Has what is downloaded or made meanwhile be told above the line.
pub(crate) fn start() {
    cache::tell_by(|text| match LINE.lock().as_ref() {
        Some(line) => line.println(text),
        None => eprintln!("{text}"),
    });
}

/// Does `work`, and shows meanwhile that it is `what` that takes time.
pub(crate) fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let is_shown = io::stderr().is_terminal();
    if is_shown {
        let line = ProgressBar::new_spinner().with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template("   {spinner} {msg}, {elapsed}") {
            line.set_style(style);
        }
        line.enable_steady_tick(TICK);
        *LINE.lock() = Some(line);
    }
    let done = work();
    if is_shown && let Some(line) = LINE.lock().take() {
        line.finish_and_clear();
    }
    done
}
