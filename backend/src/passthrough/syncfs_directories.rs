//! The directories that a session keeps open for SYNCFS, one for each mount that it writes to.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gangplank_fuse::NodeId;
use parking_lot::{Mutex, MutexGuard};

use super::budget::{Budget, Descriptor, Permit, PermitFor};
use super::mounts::MountIndex;
use crate::state::arena::{Arena, Part};
use crate::state::descriptors::{Descriptors, Kind, Owner};
use crate::state::files::SyncfsRecord;
use crate::sys::process;

const ANNOUNCED: u32 = 1;
const WRITTEN: u32 = 2;

/// The mounts of a session, and what is open of them.
#[derive(Debug)]
pub(super) struct SyncfsDirectories {
    mounts: Mutex<BTreeMap<MountIndex, SyncfsMount>>,
    /// The same, for the next worker. A mount beyond its end is not noted there.
    records: Part<SyncfsRecord>,
    descriptors: Descriptors,
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
    /// What is in an arena. Its descriptors must be right: see [`SyncfsDirectories::correct`].
    pub(super) fn new(arena: &Arena, budget: &Arc<Budget>) -> Self {
        let records = arena.syncfs_mounts();
        let descriptors = Descriptors::new(arena);
        for (_, record) in records.in_memory() {
            // The worker died before it noted the mount whose descriptor it had noted.
            if record.anchor.load(Ordering::Acquire) == 0
                && let Some(descriptor) = record.descriptor.get()
            {
                record.descriptor.set(None);
                descriptors.disown(descriptor);
                // Closes it.
                let _ = process::adopt(descriptor);
            }
        }
        let known = records.in_memory().filter_map(|(index, record)| {
            let mount = MountIndex(u32::try_from(index).ok()?);
            let anchor = record.anchor.load(Ordering::Acquire);
            let flags = record.flags.load(Ordering::Relaxed);
            let descriptor = record.descriptor.get();
            let adopted = descriptor.and_then(|number| process::adopt(number).ok());
            let open = adopted.map(|fd| {
                let permit = match mount {
                    MountIndex::ROOT => Permit::uncounted(),
                    _ => {
                        budget.count_earlier(0, 1);
                        Permit::of_counted(budget, PermitFor::File)
                    }
                };
                Arc::new(Descriptor::new(fd, permit))
            });
            let known = SyncfsMount {
                anchor: NodeId::new(anchor),
                is_announced: flags & ANNOUNCED != 0,
                is_written: flags & WRITTEN != 0,
                open,
            };
            (anchor != 0).then_some((mount, known))
        });
        let mounts: BTreeMap<_, _> = known.collect();
        let directories = Self {
            root_tried: AtomicBool::new(mounts.contains_key(&MountIndex::ROOT)),
            records,
            descriptors,
            submounts: AtomicUsize::new(0),
            mounts: Mutex::default(),
        };
        directories.count(&mounts);
        *directories.mounts.lock() = mounts;
        directories
    }

    /// Disowns descriptors that a worker was about to note, or had just given up, when it died.
    pub(super) fn correct(arena: &Arena) {
        let records = arena.syncfs_mounts();
        Descriptors::new(arena).correct(Kind::Syncfs, |mount, descriptor| {
            let record = records.get(mount as usize);
            record.and_then(|record| record.descriptor.get()) == Some(descriptor)
        });
    }

    /// Forgets the descriptors that are lost: the mounts are opened again.
    pub(super) fn forget_lost(arena: &Arena, is_lost: impl Fn(RawFd) -> bool) {
        let descriptors = Descriptors::new(arena);
        for (_, record) in arena.syncfs_mounts().in_memory() {
            if let Some(number) = record.descriptor.get().filter(|number| is_lost(*number)) {
                descriptors.disown(number);
                record.descriptor.set(None);
            }
        }
    }

    /// Notes a mount for the next worker.
    fn note(&self, mount: MountIndex, known: &SyncfsMount) {
        let Some(record) = self.records.get(mount.0 as usize) else {
            return;
        };
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(known.is_announced, ANNOUNCED) | flag(known.is_written, WRITTEN);
        record.flags.store(flags, Ordering::Relaxed);
        if let Some(open) = &known.open
            && record.descriptor.get().is_none()
        {
            let descriptor = open.as_fd().as_raw_fd();
            let owner = Owner::new(Kind::Syncfs, mount.0);
            self.descriptors.own_held(descriptor, owner);
            record.descriptor.set(Some(descriptor));
        }
        record.anchor.store(known.anchor.get(), Ordering::Release);
    }

    /// The next worker is to know nothing of the mount.
    fn unnote(&self, mount: MountIndex) {
        let Some(record) = self.records.get(mount.0 as usize) else {
            return;
        };
        if let Some(descriptor) = record.descriptor.get() {
            record.descriptor.set(None);
            self.descriptors.disown_held(descriptor);
        }
        record.anchor.store(0, Ordering::Release);
    }

    /// Closes all directories.
    pub(super) fn clear(&self) {
        let mut mounts = self.lock();
        mounts.keys().for_each(|mount| self.unnote(*mount));
        let old = std::mem::take(&mut *mounts);
        drop(mounts);
        self.submounts.store(0, Ordering::Relaxed);
        self.root_tried.store(false, Ordering::Relaxed);
        drop(old);
    }

    /// The guest has come to know `anchor`, the first inode of a mount. Nothing is opened, so that
    /// the host can unmount what guests only look at.
    pub(super) fn register(&self, mount: MountIndex, anchor: NodeId, is_announced: bool) {
        let mut mounts = self.lock();
        let known = mounts.entry(mount).or_insert(SyncfsMount {
            anchor,
            is_announced,
            is_written: false,
            open: None,
        });
        self.note(mount, known);
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
        self.note(mount, known);
        let anchor = known.open.is_none().then_some(known.anchor);
        self.count(&mounts);
        anchor
    }

    /// Keeps a mount open. Returns what is kept, which another thread may have opened.
    pub(super) fn keep(&self, mount: MountIndex, opened: Arc<Descriptor>) -> Arc<Descriptor> {
        let kept = match self.lock().get_mut(&mount) {
            Some(known) => {
                let kept = Arc::clone(known.open.get_or_insert_with(|| Arc::clone(&opened)));
                self.note(mount, known);
                kept
            }
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
        forgotten.iter().for_each(|(mount, _)| self.unnote(*mount));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_worker_finds_every_mount_and_a_worker_takes_memory_for_no_other() {
        let arena = Arena::small();
        let budget = Budget::new(10);
        let first = SyncfsDirectories::new(&arena, &budget);
        let empty = arena.used_bytes().expect("attributes");
        let (far, inode) = (MountIndex(60_000), NodeId::new(7));
        first.note_write(MountIndex::ROOT, NodeId::ROOT, false);
        first.note_write(far, inode, false);
        // Whatever becomes of the number of mounts.
        arena.header().mounts.store(0, Ordering::Relaxed);
        let next = SyncfsDirectories::new(&arena, &budget);
        let found = next.unannounced(MountIndex::ROOT);
        let [WrittenMount::Anchor(mount, anchor)] = found[..] else {
            panic!("{found:?}");
        };
        assert_eq!((mount, anchor), (far, inode));
        assert!(next.has_submounts());
        let used = arena.used_bytes().expect("attributes");
        assert!(used <= empty + (16 << 10), "{empty} {used}");
    }
}
