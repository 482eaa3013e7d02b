//! The directories that a session keeps open for SYNCFS, one for each mount that it writes to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gangplank_fuse::NodeId;
use parking_lot::{Mutex, MutexGuard};

use super::budget::Descriptor;
use super::mounts::MountIndex;

/// The mounts of a session, and what is open of them.
#[derive(Debug, Default)]
pub(super) struct SyncfsDirectories {
    mounts: Mutex<BTreeMap<MountIndex, SyncfsMount>>,
    /// Number of mounts other than the root's.
    submounts: AtomicUsize,
    /// Whether opening the root of the share has been tried.
    pub(super) root_tried: AtomicBool,
}

#[derive(Debug)]
struct SyncfsMount {
    /// An inode of the mount that the guest knows, by which the mount can be opened.
    anchor: NodeId,
    /// Whether the guest knows that it is a mount, and syncs it by itself.
    is_announced: bool,
    /// Whether the guest has opened a file on it for writing.
    is_written: bool,
    open: Option<Arc<Descriptor>>,
}

/// What SYNCFS finds of a mount that the guest writes to.
#[derive(Debug)]
pub(super) enum WrittenMount {
    /// Its open directory.
    Open(Arc<Descriptor>),
    /// It could not be opened so far. This inode is on it.
    Anchor(MountIndex, NodeId),
}

impl SyncfsDirectories {
    /// Closes all directories.
    pub(super) fn clear(&self) {
        let old = std::mem::take(&mut *self.lock());
        self.submounts.store(0, Ordering::Relaxed);
        self.root_tried.store(false, Ordering::Relaxed);
        drop(old);
    }

    /// The guest has come to know `anchor`, the first inode of a mount. Nothing is opened, so that
    /// the host can unmount what guests only look at.
    pub(super) fn register(&self, mount: MountIndex, anchor: NodeId, is_announced: bool) {
        let mut mounts = self.lock();
        mounts.entry(mount).or_insert(SyncfsMount {
            anchor,
            is_announced,
            is_written: false,
            open: None,
        });
        self.count(&mounts);
    }

    /// The guest opens a file on a mount for writing. `inode` is on it, and becomes the anchor of a
    /// mount that is not known. Returns the anchor, or `None` if the mount is open.
    pub(super) fn note_write(
        &self,
        mount: MountIndex,
        inode: NodeId,
        is_announced: bool,
    ) -> Option<NodeId> {
        let mut mounts = self.lock();
        let known = mounts.entry(mount).or_insert(SyncfsMount {
            anchor: inode,
            is_announced,
            is_written: false,
            open: None,
        });
        known.is_written = true;
        let anchor = known.open.is_none().then_some(known.anchor);
        self.count(&mounts);
        anchor
    }

    /// Keeps a mount open. Returns what is kept, which another thread may have opened.
    pub(super) fn keep(&self, mount: MountIndex, opened: Arc<Descriptor>) -> Arc<Descriptor> {
        let kept = match self.lock().get_mut(&mount) {
            Some(known) => Arc::clone(known.open.get_or_insert_with(|| Arc::clone(&opened))),
            None => Arc::clone(&opened),
        };
        // The loser of a race is closed here, without the lock.
        drop(opened);
        kept
    }

    /// What is open of a mount.
    pub(super) fn get(&self, mount: MountIndex) -> Option<Arc<Descriptor>> {
        self.lock().get(&mount)?.open.as_ref().map(Arc::clone)
    }

    /// The mounts that the guest writes to without knowing of them, other than `except`.
    pub(super) fn unannounced(&self, except: MountIndex) -> Vec<WrittenMount> {
        let mounts = self.lock();
        let written = mounts
            .iter()
            .filter(|(mount, known)| known.is_written && !known.is_announced && **mount != except);
        written
            .map(|(mount, known)| match &known.open {
                Some(open) => WrittenMount::Open(Arc::clone(open)),
                None => WrittenMount::Anchor(*mount, known.anchor),
            })
            .collect()
    }

    /// Whether the guest has come upon other mounts than the root's.
    pub(super) fn has_submounts(&self) -> bool {
        self.submounts.load(Ordering::Relaxed) > 0
    }

    /// The guest has forgotten `inode`. If it was a mount's anchor, the guest uses nothing on the
    /// mount any more, and it is closed so that the host can unmount it. A guest that does not know
    /// of the mount still has to sync what it has written there.
    pub(super) fn forget(&self, inode: NodeId) {
        let mut mounts = self.lock();
        let forgotten: Vec<_> = mounts
            .extract_if(.., |_, known| {
                known.anchor == inode && (known.is_announced || !known.is_written)
            })
            .collect();
        self.count(&mounts);
        drop(mounts);
        drop(forgotten);
    }

    fn count(&self, mounts: &BTreeMap<MountIndex, SyncfsMount>) {
        let root = usize::from(mounts.contains_key(&MountIndex::ROOT));
        self.submounts.store(mounts.len() - root, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<MountIndex, SyncfsMount>> {
        self.mounts.lock()
    }
}
