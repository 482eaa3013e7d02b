//! What a copy tells while it works, and at its end.

use std::io::Write;

use gangplank_service::output::Output;

use super::super::error::Result;
use super::super::format::bytes;
use super::super::progress::Progress;

/// What a copy does with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Makes it or replaces it.
    Copy,
    /// Changes its permissions, owner or times.
    Attributes,
    /// Removes it.
    Remove,
}

/// The counts of a copy, and where they are shown.
pub(super) struct Report<'a> {
    out: &'a mut Output,
    pub(super) progress: Progress,
    is_verbose: bool,
    is_dry_run: bool,
    copied: u64,
    changed: u64,
    removed: u64,
    unchanged: u64,
}

impl<'a> Report<'a> {
    pub(super) fn new(out: &'a mut Output, is_verbose: bool, is_dry_run: bool) -> Self {
        Self {
            out,
            progress: Progress::begin(),
            is_verbose,
            is_dry_run,
            copied: 0,
            changed: 0,
            removed: 0,
            unchanged: 0,
        }
    }

    /// Shows what is done with a file.
    pub(super) fn tell(&mut self, action: Action, path: &str) -> Result<()> {
        let verb = match action {
            Action::Copy => {
                self.copied += 1;
                "copy"
            }
            Action::Attributes => {
                self.changed += 1;
                "attributes"
            }
            Action::Remove => {
                self.removed += 1;
                "remove"
            }
        };
        self.progress.file(path);
        if self.is_verbose || self.is_dry_run {
            let out = &mut *self.out;
            self.progress.beside(|| writeln!(out, "{verb} {path}"))?;
        }
        Ok(())
    }

    /// Counts a file that is as it should be.
    pub(super) const fn unchanged(&mut self) {
        self.unchanged += 1;
    }

    /// Shows the counts.
    pub(super) fn summary(&mut self) -> Result<()> {
        self.progress.end();
        let Self {
            copied,
            changed,
            removed,
            unchanged,
            ..
        } = self;
        let would = if self.is_dry_run { "would be " } else { "" };
        let moved = bytes(self.progress.bytes());
        let moved = match self.is_dry_run {
            true => String::new(),
            false => format!(" ({moved})"),
        };
        writeln!(
            self.out,
            "{would}copied {copied}{moved}, attributes {changed}, removed {removed}, \
             unchanged {unchanged}"
        )?;
        Ok(())
    }
}
