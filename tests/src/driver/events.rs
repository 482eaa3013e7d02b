//! A reader of the changes that guests hear of (`gangplankd --events`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use gangplank_fuse::{NodeId, Operation, ReadIn, SetattrIn, SetattrValid};
use rustix::fs::OFlags;

use super::{Driver, NodeAndFile, Ticket};

/// Bytes of a READ.
const SIZE: u32 = 64 * 1024;

/// Limit for what comes at once on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What a reader is told first, and whenever changes may have been lost.
pub const RESCAN: &str = "gangplank-events 1\nrescan\n";

/// A guest that reads changes.
pub struct Listener {
    /// The guest.
    pub driver: Driver,
    /// Its file of changes.
    pub file: NodeAndFile,
}

impl Listener {
    /// Opens the file of changes in the share that `driver` has mounted: with `OFlags::RDWR`, the
    /// process of the driver's requests is the waker.
    ///
    /// # Errors
    /// There is no such file, or its first lines are others than [`RESCAN`].
    pub fn new(mut driver: Driver, access: OFlags) -> Result<Self> {
        let directory = driver.lookup(NodeId::ROOT, c".gangplank")?.nodeid;
        let node = driver.lookup(NodeId::new(directory), c"events")?.nodeid;
        let node = NodeId::new(node);
        let file = driver.open(node, access)?;
        let file = NodeAndFile { node, file };
        let mut listener = Self { driver, file };
        let first = listener.read()?;
        ensure!(first == RESCAN, "{first:?}");
        Ok(listener)
    }

    /// Begins a READ.
    ///
    /// # Errors
    /// The ring is full.
    pub fn submit(&mut self) -> Result<Ticket> {
        let read = Operation::Read(ReadIn {
            fh: self.file.file.get(),
            size: SIZE,
            ..ReadIn::default()
        });
        let room = usize::try_from(SIZE)?;
        Ok(self.driver.submit(1, self.file.node, read, &[], room)?)
    }

    /// The lines of a READ.
    ///
    /// # Errors
    /// It fails, or does not end within [`LIMIT`].
    pub fn finish(&mut self, ticket: Ticket) -> Result<String> {
        let lines = self.driver.finish_within(ticket, LIMIT)?;
        Ok(String::from_utf8(lines)?)
    }

    /// SETATTR of the modification time, to one second after the epoch.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn set_time(&mut self, node: NodeId) -> Result<()> {
        let times = SetattrIn {
            valid: SetattrValid::MTIME.bits(),
            mtime: 1,
            ..SetattrIn::default()
        };
        self.driver.setattr(node, times)?;
        Ok(())
    }

    /// Reads once.
    ///
    /// # Errors
    /// As [`Listener::finish`].
    pub fn read(&mut self) -> Result<String> {
        let ticket = self.submit()?;
        self.finish(ticket)
    }

    /// Reads until `line` comes, and returns all lines but those that say that nothing happened.
    ///
    /// # Errors
    /// It does not come within [`LIMIT`]; with what came.
    pub fn read_to(&mut self, line: &str) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let read = self.read()?;
            lines.extend(
                read.lines()
                    .filter(|line| *line != "idle")
                    .map(str::to_owned),
            );
            if lines.iter().any(|one| one == line) {
                return Ok(lines);
            }
        }
        bail!("'{line}' did not come: {lines:?}")
    }
}

/// Whether a file of the host has the time that [`Listener::set_time`] sets.
///
/// # Errors
/// The file is not there.
pub fn has_that_time(path: &Path) -> Result<bool> {
    Ok(fs::metadata(path)?.mtime() == 1)
}
