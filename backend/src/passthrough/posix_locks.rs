//! The POSIX locks that one guest holds on the host's files.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::NodeId;
use parking_lot::{Mutex, MutexGuard};

use super::budget::{Budget, Descriptor, Permit, PermitFor};
use crate::state::arena::{Arena, Part};
use crate::state::descriptors::{Descriptors, Kind, Owner};
use crate::state::files::LockRecord;
use crate::state::slab::{Key, Slab};
use crate::state::table::TableRecord;
use crate::sys::file_lock::{self, LockKind, RangeLock};
use crate::sys::process;

/// Node id and lock owner.
pub(super) type LockOwner = (NodeId, u64);

/// The open file descriptions that hold POSIX locks.
#[derive(Debug)]
pub(super) struct PosixLocks {
    table: Mutex<LockFiles>,
    mark: Part<TableRecord>,
}

/// The locked table of [`PosixLocks`], marked as changing in the arena.
pub(super) struct Changing<'a> {
    files: MutexGuard<'a, LockFiles>,
    mark: &'a TableRecord,
}

#[derive(Debug)]
struct LockFiles {
    by_owner: HashMap<LockOwner, (Key, Arc<Descriptor>)>,
    records: Slab<LockRecord, ()>,
    descriptors: Descriptors,
}

impl PosixLocks {
    /// The locks that are in an arena. Their table must be whole: see [`PosixLocks::correct`].
    pub(super) fn new(arena: &Arc<Arena>, budget: &Arc<Budget>) -> Self {
        let (mark, records, used) = arena.locks();
        let records = Slab::<LockRecord, ()>::new(mark.clone(), records, used);
        let mut by_owner = HashMap::new();
        for (key, record) in records.iter_from(0) {
            // The budget counts it since this worker began.
            let permit = Permit::of_counted(budget, PermitFor::File);
            match process::adopt(descriptor_of(record)) {
                Ok(fd) => {
                    let lock_file = Arc::new(Descriptor::new(fd, permit));
                    by_owner.insert(owner_of(record), (key, lock_file));
                }
                Err(error) => log::error!("a guest's lock is lost: {error}; please report this"),
            }
        }
        Self {
            table: Mutex::new(LockFiles {
                by_owner,
                records,
                descriptors: Descriptors::new(arena),
            }),
            mark,
        }
    }

    /// Makes the table whole if a worker left it half changed when it died. The records are right.
    pub(super) fn correct(arena: &Arc<Arena>) {
        let (mark, records, used) = arena.locks();
        if !mark[0].is_changing() {
            return;
        }
        let records = Slab::<LockRecord, ()>::new(mark.clone(), records, used);
        let descriptors = Descriptors::new(arena);
        for (key, record) in records.iter_from(0) {
            descriptors.own(descriptor_of(record), Owner::new(Kind::Lock, key.index()));
        }
        descriptors.correct(Kind::Lock, |index, descriptor| {
            let found = records.at(index);
            found.is_some_and(|(_, record)| descriptor_of(record) == descriptor)
        });
        mark[0].end_change();
    }

    /// Number of open file descriptions.
    pub(super) fn len(&self) -> usize {
        self.table.lock().by_owner.len()
    }

    /// Releases all locks of an owner on a node.
    pub(super) fn release(&self, node: NodeId, owner: u64) {
        let lock_file = self.lock().remove((node, owner));
        if let Some(lock_file) = lock_file {
            // A thread that waits for a lock may keep the descriptor open, so the locks are
            // released explicitly.
            let all = RangeLock {
                kind: LockKind::Unlock,
                start: 0,
                length: 0,
            };
            if let Err(error) = file_lock::set_range_lock(lock_file.as_fd(), all, false) {
                log::warn!("cannot release a guest's locks on a closed file: {error}");
            }
        }
    }

    /// Calls `close`, which counts a file as closed and returns how many the node has left. After
    /// the last one, releases all locks on the node; owners that close properly have released
    /// theirs already.
    ///
    /// The table stays locked during `close`. A concurrent opener is either counted before, so the
    /// file is not the last one, or it takes its locks after the old ones are released.
    pub(super) fn release_with_last(&self, node: NodeId, close: impl FnOnce() -> u32) {
        let released: Vec<_> = {
            let mut locks = self.lock();
            if close() > 0 {
                return;
            }
            locks.remove_all(|(of, _)| of == node)
        };
        // Closed without the lock, because close may block.
        drop(released);
    }

    /// Releases all locks.
    pub(super) fn clear(&self) {
        let released = self.lock().remove_all(|_| true);
        drop(released);
    }

    /// Locks the table.
    pub(super) fn lock(&self) -> Changing<'_> {
        let files = self.table.lock();
        let mark = &self.mark[0];
        mark.begin_change();
        Changing { files, mark }
    }
}

impl Changing<'_> {
    /// The open file description of an owner.
    pub(super) fn get(&self, owner: LockOwner) -> Option<&Arc<Descriptor>> {
        self.files.by_owner.get(&owner).map(|(_, file)| file)
    }

    /// Adds the open file description of an owner that has none.
    ///
    /// # Errors
    /// ENFILE if the table is full.
    pub(super) fn insert(&mut self, owner: LockOwner, file: Arc<Descriptor>) -> io::Result<()> {
        let descriptor = file.as_fd().as_raw_fd();
        let (node, number) = owner;
        let key = self.files.records.insert((), |record, _| {
            record.node.store(node.get(), Ordering::Relaxed);
            record.owner.store(number, Ordering::Relaxed);
            let descriptor = u32::try_from(descriptor).unwrap_or(u32::MAX);
            record.descriptor.store(descriptor, Ordering::Relaxed);
        })?;
        let of_record = Owner::new(Kind::Lock, key.index());
        self.files.descriptors.own(descriptor, of_record);
        self.files.by_owner.insert(owner, (key, file));
        Ok(())
    }

    fn remove(&mut self, owner: LockOwner) -> Option<Arc<Descriptor>> {
        let (key, file) = self.files.by_owner.remove(&owner)?;
        self.files.descriptors.disown(file.as_fd().as_raw_fd());
        self.files.records.remove(key);
        self.files.records.trim();
        Some(file)
    }

    fn remove_all(&mut self, is_meant: impl Fn(LockOwner) -> bool) -> Vec<Arc<Descriptor>> {
        let owners = self.files.by_owner.keys().copied();
        let meant: Vec<_> = owners.filter(|owner| is_meant(*owner)).collect();
        meant
            .into_iter()
            .filter_map(|owner| self.remove(owner))
            .collect()
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        // After a panic in the middle of a change, the next worker corrects the table.
        if !std::thread::panicking() {
            self.mark.end_change();
        }
    }
}

fn owner_of(record: &LockRecord) -> LockOwner {
    let node = NodeId::new(record.node.load(Ordering::Relaxed));
    (node, record.owner.load(Ordering::Relaxed))
}

fn descriptor_of(record: &LockRecord) -> RawFd {
    let number = record.descriptor.load(Ordering::Relaxed);
    RawFd::try_from(number).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::arena::Limits;

    #[test]
    fn no_lock_is_taken_while_a_file_is_counted_out() {
        let limits = Limits {
            inode_bytes: 1 << 20,
            descriptors: 64,
            rings: 1,
            ring_size: 64,
        };
        let arena = Arena::new(limits).expect("an arena");
        let locks = PosixLocks::new(&arena, &Budget::new(10));
        let mut was_free = true;
        locks.release_with_last(NodeId::new(99), || {
            was_free = locks.table.try_lock().is_some();
            0
        });
        assert!(!was_free);
        assert!(locks.table.try_lock().is_some());
    }
}
