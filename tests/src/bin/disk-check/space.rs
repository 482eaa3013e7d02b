//! The file system's free space, and dropping its cached data.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, statvfs};

/// A file that uses up free space.
pub(crate) struct Ballast {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Ballast {
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let path = directory.join("ballast");
        let file = File::create(&path).context("creating the ballast")?;
        Ok(Self {
            file,
            path,
            bytes: 0,
        })
    }

    /// Leaves `free` bytes free in the file system.
    pub(crate) fn leave(&mut self, free: u64) -> Result<()> {
        let figures = statvfs(&self.path).context("statvfs")?;
        let there = figures.f_bavail * figures.f_frsize;
        if there > free {
            let bytes = self.bytes + there - free;
            // The ballast's own metadata may need the last blocks.
            for bytes in [bytes, bytes.saturating_sub(64 << 10)] {
                let more = fallocate(
                    &self.file,
                    FallocateFlags::empty(),
                    self.bytes,
                    bytes - self.bytes,
                );
                if more.is_ok() {
                    self.bytes = bytes;
                    break;
                }
                self.file.set_len(self.bytes)?;
            }
        } else {
            self.bytes = self.bytes.saturating_sub(free - there);
            self.file.set_len(self.bytes).context("freeing space")?;
        }
        Ok(())
    }

    pub(crate) fn remove(mut self) -> Result<()> {
        self.bytes = 0;
        self.file.set_len(0).context("freeing all space")?;
        std::fs::remove_file(&self.path).context("removing the ballast")
    }
}

/// Empties a file, which frees its space at once, unlike its removal.
pub(crate) fn empty(path: &Path) -> Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .context("emptying the file")?;
    // Unwritten data of the last attempt, and errors of writing it, do not matter.
    let _ = file.sync_all();
    Ok(())
}

/// Reads the content of a file without the page cache.
pub(crate) fn read_uncached(path: &Path, content: &mut Vec<u8>) -> Result<()> {
    let mut file = File::open(path)?;
    // Only written pages can be dropped. Data that cannot be written was not acknowledged, or its
    // loss will show.
    let _ = file.sync_all();
    fadvise(&file, 0, None, Advice::DontNeed).context("dropping cached pages")?;
    content.clear();
    file.read_to_end(content)?;
    Ok(())
}
