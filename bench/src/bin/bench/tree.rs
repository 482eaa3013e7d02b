//! The shared directory of the workloads.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Files of [`SMALL_LEN`] bytes in the directory [`SMALL`].
pub(crate) const SMALL_FILES: usize = 2000;
/// Bytes of each small file.
pub(crate) const SMALL_LEN: usize = 4096;
/// Empty files in the directory [`MANY`].
pub(crate) const MANY_FILES: usize = 10_000;
/// Bytes of the file [`LARGE`].
pub(crate) const LARGE_LEN: u64 = 64 << 20;

/// Directory of small files.
pub(crate) const SMALL: &CStr = c"small";
/// Directory for listings.
pub(crate) const MANY: &CStr = c"many";
/// Directory for new files.
pub(crate) const MADE: &CStr = c"made";
/// File for reads and writes.
pub(crate) const LARGE: &CStr = c"large";

/// A shared directory. It is removed on drop.
pub(crate) struct Tree {
    dir: TempDir,
}

impl Tree {
    /// Fills a new directory in `parent`.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        let what = || format!("filling a directory in {}", parent.display());
        let dir = tempfile::Builder::new()
            .prefix("gangplank-bench-")
            .tempdir_in(parent)
            .with_context(what)?;
        let tree = Self { dir };
        tree.fill().with_context(what)?;
        Ok(tree)
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path of `name` in it.
    pub(crate) fn path_of(&self, name: &CStr) -> PathBuf {
        self.path().join(name.to_string_lossy().as_ref())
    }

    fn fill(&self) -> Result<()> {
        let content = vec![0x5a; 1 << 20];
        for directory in [SMALL, MANY, MADE] {
            fs::create_dir(self.path_of(directory))?;
        }
        for name in names(SMALL_FILES) {
            let path = self.path_of(SMALL).join(name.to_str()?);
            fs::write(path, content.get(..SMALL_LEN).unwrap_or_default())?;
        }
        for name in names(MANY_FILES) {
            File::create(self.path_of(MANY).join(name.to_str()?))?;
        }
        let mut large = File::create(self.path_of(LARGE))?;
        for _ in 0..LARGE_LEN >> 20 {
            large.write_all(&content)?;
        }
        // Sync now, or the kernel would write this data during a measurement.
        large.sync_all()?;
        Ok(())
    }
}

/// `count` names of the same length.
pub(crate) fn names(count: usize) -> Vec<CString> {
    numbered("file", count)
}

/// `count` names of the same length that begin with `stem`.
pub(crate) fn numbered(stem: &str, count: usize) -> Vec<CString> {
    let name = |number| CString::new(format!("{stem}-{number:07}")).expect("no NUL in it");
    (0..count).map(name).collect()
}
