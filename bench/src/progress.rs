//! Which of many measurements runs: a line each, or one line with the time left on a terminal.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often the line on a terminal is drawn without news.
const TICK: Duration = Duration::from_millis(500);

/// Measurements one after another.
#[derive(Debug)]
pub struct Progress {
    /// None without a terminal.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins with `count` measurements to come.
    #[must_use]
    pub fn of(count: usize) -> Self {
        const LINE: &str = "{pos} of {len} done, {elapsed} (left: {eta}) {wide_msg}";
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(count as u64);
            if let Ok(style) = ProgressStyle::with_template(LINE) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar }
    }

    /// Begins a measurement, and shows its name.
    pub fn begin(&self, name: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(name.to_owned()),
            None => eprintln!("{name}"),
        }
    }

    /// Counts a measurement as done.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
