//! The POSIX locks that one guest holds on the host's files.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::NodeId;
use parking_lot::{Mutex, MutexGuard};

use super::budget::{Budget, Descriptor, Permit, PermitFor};
use super::errno::bad_handle;
use crate::state::arena::Arena;
use crate::state::descriptors::{Descriptors, Kind, Owner};
use crate::state::files::LockRecord;
use crate::state::slab::{Key, Slab};
use crate::state::table::{Changing, Marked, TableRecord};
use crate::sys::file_lock::{self, LockKind, RangeLock};
use crate::sys::process;

/// Node id and lock owner.
pub(super) type LockOwner = (NodeId, u64);

/// The open file descriptions that hold POSIX locks.
#[derive(Debug)]
pub(super) struct PosixLocks {
    table: Mutex<LockFiles>,
}

/// The table of [`PosixLocks`].
#[derive(Debug)]
pub(super) struct LockFiles {
    by_owner: HashMap<LockOwner, (Key, Arc<Descriptor>)>,
    records: Slab<LockRecord, ()>,
    descriptors: Descriptors,
}

impl PosixLocks {
    /// The locks that are in an arena. Their table must be whole: see [`PosixLocks::correct`].
    pub(super) fn new(arena: &Arc<Arena>, budget: &Arc<Budget>) -> Self {
        let (mark, records, used) = arena.locks();
        let records = Slab::<LockRecord, ()>::new(mark, records, used);
        let mut by_owner = HashMap::new();
        for (key, record) in records.iter_from(0) {
            // The budget counts it since this worker began.
            let permit = Permit::of_counted(budget, PermitFor::File);
            let number = record.descriptor.get().ok_or_else(bad_handle);
            match number.and_then(process::adopt) {
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
        }
    }

    /// Makes the table whole if a worker left it half changed when it died. The records are right.
    pub(super) fn correct(arena: &Arc<Arena>) {
        let (mark, records, used) = arena.locks();
        if !mark[0].is_changing() {
            return;
        }
        let records = Slab::<LockRecord, ()>::new(mark, records, used);
        Descriptors::new(arena).correct_by(&records, 0);
        records.mark().end_change();
    }

    /// Forgets the locks whose descriptors are lost. The table must be whole. Returns their number.
    pub(super) fn forget_lost(arena: &Arc<Arena>, is_lost: impl Fn(RawFd) -> bool) -> usize {
        let (mark, records, used) = arena.locks();
        let mut records = Slab::<LockRecord, ()>::new(mark, records, used);
        let has_lost = |record: &LockRecord| record.descriptor.get().is_none_or(&is_lost);
        let lost: Vec<Key> = (records.iter_from(0))
            .filter_map(|(key, record)| has_lost(record).then_some(key))
            .collect();
        let descriptors = Descriptors::new(arena);
        records.mark().begin_change();
        for key in &lost {
            let record = records.get(*key);
            if let Some(number) = record.and_then(|record| record.descriptor.get()) {
                descriptors.disown(number);
            }
            records.remove(*key);
        }
        records.mark().end_change();
        lost.len()
    }

    /// The descriptors that are held outside of the daemon.
    pub(super) fn held(arena: &Arc<Arena>) -> Vec<RawFd> {
        let (mark, records, used) = arena.locks();
        let records = Slab::<LockRecord, ()>::new(mark, records, used);
        let records = records.iter_from(0);
        records
            .filter_map(|(_, record)| record.descriptor.get())
            .collect()
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
    pub(super) fn lock(&self) -> Changing<MutexGuard<'_, LockFiles>> {
        Changing::new(self.table.lock())
    }
}

impl Marked for LockFiles {
    fn mark(&self) -> &TableRecord {
        self.records.mark()
    }
}

impl LockFiles {
    /// The open file description of an owner.
    pub(super) fn get(&self, owner: LockOwner) -> Option<&Arc<Descriptor>> {
        self.by_owner.get(&owner).map(|(_, file)| file)
    }

    /// Adds the open file description of an owner that has none.
    ///
    /// # Errors
    /// ENFILE if the table is full.
    pub(super) fn insert(&mut self, owner: LockOwner, file: Arc<Descriptor>) -> io::Result<()> {
        let descriptor = file.as_fd().as_raw_fd();
        let (node, number) = owner;
        let key = self.records.insert((), |record, _| {
            record.node.store(node.get(), Ordering::Relaxed);
            record.owner.store(number, Ordering::Relaxed);
            record.descriptor.set(Some(descriptor));
        })?;
        let of_record = Owner::new(Kind::Lock, key.index());
        self.descriptors.own_held(descriptor, of_record);
        self.by_owner.insert(owner, (key, file));
        Ok(())
    }

    fn remove(&mut self, owner: LockOwner) -> Option<Arc<Descriptor>> {
        let (key, file) = self.by_owner.remove(&owner)?;
        self.descriptors.disown_held(file.as_fd().as_raw_fd());
        self.records.remove(key);
        self.records.trim();
        Some(file)
    }

    fn remove_all(&mut self, is_meant: impl Fn(LockOwner) -> bool) -> Vec<Arc<Descriptor>> {
        let owners = self.by_owner.keys().copied();
        let meant: Vec<_> = owners.filter(|owner| is_meant(*owner)).collect();
        meant
            .into_iter()
            .filter_map(|owner| self.remove(owner))
            .collect()
    }
}

fn owner_of(record: &LockRecord) -> LockOwner {
    let node = NodeId::new(record.node.load(Ordering::Relaxed));
    (node, record.owner.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lock_is_taken_while_a_file_is_counted_out() {
        let arena = Arena::small();
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
