//! Progress on a terminal.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::path::text;

/// How often the line is drawn without news.
const TICK: Duration = Duration::from_millis(250);

/// What one pass over data shows: the file, bytes and their rate. It shows nothing unless standard
/// error is a terminal.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    bytes: u64,
}

impl Progress {
    /// The copy of one file of `len` bytes.
    pub(super) fn of(path: &[u8], len: u64) -> Self {
        let progress = Self::begin();
        progress.expect(len);
        progress.file(&text(path));
        progress
    }

    /// One that shows nothing.
    pub(super) fn hidden() -> Self {
        let bar = ProgressBar::hidden();
        Self { bar, bytes: 0 }
    }

    /// Begins with nothing.
    pub(super) fn begin() -> Self {
        let bar = match io::stderr().is_terminal() {
            true => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5)),
            false => ProgressBar::hidden(),
        };
        let style =
            ProgressStyle::with_template("{binary_bytes} {binary_bytes_per_sec} {wide_msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self { bar, bytes: 0 }
    }

    /// The bytes to come, if they are known.
    pub(super) fn expect(&self, bytes: u64) {
        const KNOWN: &str = "{percent:>3}% {binary_bytes}/{binary_total_bytes} \
                             {binary_bytes_per_sec} {eta} {wide_msg}";
        self.bar.set_length(self.bytes.saturating_add(bytes));
        if let Ok(style) = ProgressStyle::with_template(KNOWN) {
            self.bar.set_style(style);
        }
    }

    /// The file that is worked on.
    pub(super) fn file(&self, path: &str) {
        if !self.bar.is_hidden() {
            self.bar.set_message(path.to_owned());
        }
    }

    /// Adds bytes that were moved.
    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.bar.inc(bytes);
    }

    /// Passes over bytes that an earlier copy has moved.
    pub(super) fn skip(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Bytes moved so far.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Shows other output without a mark of the progress line.
    pub(super) fn beside<T>(&self, show: impl FnOnce() -> T) -> T {
        self.bar.suspend(show)
    }

    /// Takes the line away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}
