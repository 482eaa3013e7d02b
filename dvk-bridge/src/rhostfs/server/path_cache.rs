//! The paths of a client's open files, within a memory limit.
//!
//! A client can have thousands of open files with paths of up to 4 KiB. So the paths of all its
//! files share one limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;

use super::path::{PATH_MAX, Path};

/// Memory limit of one client's paths: 64 bytes for each of 65,536 files, or 1,024 paths of the
/// longest.
const MAX_PATH_BYTES: usize = 4 << 20;

/// The memory that one client's paths occupy.
#[derive(Clone, Debug, Default)]
pub(super) struct PathMemory(Arc<AtomicUsize>);

/// A path that counts as long as this is kept.
#[derive(Debug)]
pub(super) struct CachedPath {
    /// `None` once a rename has made the path too long.
    path: Option<Path>,
    memory: PathMemory,
}

impl PathMemory {
    /// Keeps `path`.
    ///
    /// # Errors
    ///
    /// EMFILE if the limit is reached.
    pub(super) fn remember(&self, path: Path) -> Result<CachedPath, Errno> {
        if !self.take(path.len()) {
            return Err(Errno::MFILE);
        }
        Ok(CachedPath {
            path: Some(path),
            memory: self.clone(),
        })
    }

    /// Adds `bytes` if the limit allows.
    fn take(&self, bytes: usize) -> bool {
        let more = |taken: usize| {
            taken
                .checked_add(bytes)
                .filter(|taken| *taken <= MAX_PATH_BYTES)
        };
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.0.fetch_update(set, fetch, more).is_ok()
    }

    fn release(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl CachedPath {
    /// The path.
    ///
    /// # Errors
    ///
    /// ESTALE if it has become too long.
    pub(super) fn path(&self) -> Result<&Path, Errno> {
        self.path.as_ref().ok_or(Errno::STALE)
    }

    /// Updates the path after a rename.
    pub(super) fn moved(&mut self, from: &Path, to: &Path) {
        let Some(path) = &self.path else {
            return;
        };
        let Some(moved) = path.moved(from, to) else {
            return;
        };
        self.memory.release(path.len());
        let fits = moved.len() <= PATH_MAX && self.memory.take(moved.len());
        self.path = fits.then_some(moved);
    }
}

impl Drop for CachedPath {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            self.memory.release(path.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        Path::parse(format!("{text}\0").as_bytes()).unwrap()
    }

    #[test]
    fn a_clients_paths_have_a_limit() {
        let memory = PathMemory::default();
        let long = path(&"/name".repeat(800));
        let mut kept = Vec::new();
        let refused = loop {
            match memory.remember(long.clone()) {
                Ok(cached_path) => kept.push(cached_path),
                Err(errno) => break errno,
            }
        };
        assert_eq!(refused, Errno::MFILE);
        assert_eq!(kept.len(), MAX_PATH_BYTES / long.len());
        kept.pop();
        assert!(memory.remember(long).is_ok(), "the limit is not reached");
        drop(kept);
        assert_eq!(memory.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_path_that_renames_make_too_long_is_dropped() {
        let memory = PathMemory::default();
        let mut file = memory.remember(path("/a/file")).unwrap();
        let long = path(&"/name".repeat(800));
        file.moved(&path("/a"), &long);
        assert!(file.path().is_ok());
        file.moved(&path("/name"), &long);
        assert_eq!(file.path(), Err(Errno::STALE));
        assert_eq!(memory.0.load(Ordering::Relaxed), 0);
        file.moved(&long, &path("/b"));
        assert_eq!(file.path(), Err(Errno::STALE));
    }
}
