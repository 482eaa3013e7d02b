//! The POSIX locks that one guest holds on the host's files.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use gangplank_fuse::NodeId;
use parking_lot::{Mutex, MutexGuard};

use super::budget::Descriptor;
use crate::sys::file_lock::{self, LockKind, RangeLock};

/// Node id and lock owner.
pub(super) type Owner = (NodeId, u64);

/// The open file descriptions that hold POSIX locks.
#[derive(Debug, Default)]
pub(super) struct PosixLocks {
    lock_files: Mutex<HashMap<Owner, Arc<Descriptor>>>,
}

impl PosixLocks {
    /// Releases all locks of an owner on a node.
    pub(super) fn release(&self, node: NodeId, owner: u64) {
        let lock_file = self.lock().remove(&(node, owner));
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
            let mut lock_files = self.lock();
            if close() > 0 {
                return;
            }
            lock_files.extract_if(|(of, _), _| *of == node).collect()
        };
        // Closed without the lock, because close may block.
        drop(released);
    }

    /// Releases all locks.
    pub(super) fn clear(&self) {
        let lock_files = std::mem::take(&mut *self.lock());
        drop(lock_files);
    }

    /// Locks the table.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Owner, Arc<Descriptor>>> {
        self.lock_files.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lock_is_taken_while_a_file_is_counted_out() {
        let locks = PosixLocks::default();
        let mut was_free = true;
        locks.release_with_last(NodeId::new(99), || {
            was_free = locks.lock_files.try_lock().is_some();
            0
        });
        assert!(!was_free);
        assert!(locks.lock_files.try_lock().is_some());
    }
}
