//! Access by system calls on a file of the host, or on one in a mount.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Advice, OFlags, fadvise};

use super::{FileAccess, shown};

/// The file.
pub(super) struct Files {
    buffered: File,
    /// The file with `O_DIRECT`, for transfers of single pages through a mount. `None` for files of
    /// the host.
    pages: Option<File>,
}

/// Size of a page of the kernel's cache.
const PAGE: usize = 4096;

impl Files {
    /// Opens a file of the host.
    pub(super) fn on_host(path: &Path) -> Result<Self> {
        Ok(Self {
            buffered: open(path, OFlags::empty())?,
            pages: None,
        })
    }

    /// Opens a file in a mount.
    pub(super) fn in_mount(path: &Path) -> Result<Self> {
        Ok(Self {
            buffered: open(path, OFlags::empty())?,
            pages: Some(open(path, OFlags::DIRECT)?),
        })
    }

    fn file(&self, size: usize) -> &File {
        match &self.pages {
            Some(pages) if size <= PAGE => pages,
            _ => &self.buffered,
        }
    }
}

fn open(path: &Path, flags: OFlags) -> Result<File> {
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(flags);
    options
        .open(path)
        .with_context(|| format!("opening {}", shown(path)))
}

impl FileAccess for Files {
    fn look(&mut self) -> Result<()> {
        rustix::fs::fstat(&self.buffered)?;
        Ok(())
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        Ok(self.file(into.len()).read_exact_at(into, at)?)
    }

    fn write(&mut self, at: u64, from: &[u8]) -> Result<()> {
        Ok(self.file(from.len()).write_all_at(from, at)?)
    }

    fn forget(&mut self) -> Result<()> {
        if self.pages.is_some() {
            fadvise(&self.buffered, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }
}
