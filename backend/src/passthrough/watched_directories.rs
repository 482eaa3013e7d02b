//! The directories whose changes a guest hears of: all that it knows.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use gangplank_fuse::NodeId;
use parking_lot::Mutex;

use crate::sys::fanotify::{DirectoryKey, Watcher};

/// Directories that the guest has forgotten are dropped when there are more than twice as many as
/// it knows, and more than this.
const MIN_FORGOTTEN: usize = 1024;

/// What is watched, while somebody reads changes.
#[derive(Debug, Default)]
pub(super) struct WatchedDirectories {
    watcher: OnceLock<Watcher>,
    is_active: AtomicBool,
    /// Whether changes may have been lost.
    has_lost: AtomicBool,
    nodes: Mutex<HashMap<DirectoryKey, NodeId>>,
}

impl WatchedDirectories {
    /// Whether directories are watched.
    pub(super) fn is_active(&self) -> bool {
        self.is_active.load(Ordering::Relaxed)
    }

    /// Begins, with no directory.
    ///
    /// # Errors
    /// Those of [`Watcher::new`].
    pub(super) fn begin(&self) -> io::Result<()> {
        if self.watcher.get().is_none() {
            // If two threads are here, one of the watchers is closed again.
            let _ = self.watcher.set(Watcher::new()?);
        }
        self.is_active.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends, and forgets all directories.
    pub(super) fn end(&self) {
        self.is_active.store(false, Ordering::Relaxed);
        self.clear();
    }

    /// Forgets all directories.
    pub(super) fn clear(&self) {
        if let Some(watcher) = self.watcher.get()
            && let Err(error) = watcher.clear()
        {
            log::debug!("cannot stop to watch directories: {error}");
        }
        self.nodes.lock().clear();
    }

    /// Watches a directory.
    ///
    /// # Errors
    /// Those of [`Watcher::watch`] and [`DirectoryKey::of`].
    pub(super) fn watch(
        &self,
        proc_self_fd: BorrowedFd<'_>,
        node: NodeId,
        directory: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let Some(watcher) = self.watcher.get() else {
            return Ok(());
        };
        let key = DirectoryKey::of(directory)?;
        // First, so that no event comes of a directory that is not known.
        self.nodes.lock().insert(key.clone(), node);
        watcher.watch(proc_self_fd, directory).inspect_err(|_| {
            self.nodes.lock().remove(&key);
        })
    }

    /// Whether most of the watched directories are forgotten, if the guest knows at most `known`.
    pub(super) fn has_many_forgotten(&self, known: usize) -> bool {
        self.nodes.lock().len() > 2 * known + MIN_FORGOTTEN
    }

    /// The node of a directory.
    pub(super) fn node(&self, key: &DirectoryKey) -> Option<NodeId> {
        self.nodes.lock().get(key).copied()
    }

    /// What tells of changes.
    pub(super) fn watcher(&self) -> Option<&Watcher> {
        self.watcher.get()
    }

    /// Changes may have been lost.
    pub(super) fn lose(&self) {
        self.has_lost.store(true, Ordering::Relaxed);
    }

    /// Whether changes may have been lost since the last call.
    pub(super) fn take_lost(&self) -> bool {
        self.has_lost.swap(false, Ordering::Relaxed)
    }
}
