//! The directories that a session keeps open for SYNCFS.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::budget::Descriptor;
use super::mounts::MountIndex;

/// One open directory for each mount that the guest has used.
#[derive(Debug, Default)]
pub(super) struct SyncfsDirectories {
    open: Mutex<BTreeMap<MountIndex, Arc<Descriptor>>>,
    /// Whether opening the root was tried.
    pub(super) root_tried: AtomicBool,
}

impl SyncfsDirectories {
    /// Closes all directories.
    pub(super) fn clear(&self) {
        let old = std::mem::take(&mut *self.lock());
        self.root_tried.store(false, Ordering::Relaxed);
        drop(old);
    }

    /// The open directory of a mount.
    pub(super) fn get(&self, mount: MountIndex) -> Option<Arc<Descriptor>> {
        self.lock().get(&mount).map(Arc::clone)
    }

    /// Locks the list.
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<MountIndex, Arc<Descriptor>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
