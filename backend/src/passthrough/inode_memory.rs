//! The memory that the inodes of a guest take, and its limit.
//!
//! New inodes may not take the last eighth. It is reserved for the names of evicted inodes, so that
//! eviction still works when new lookups fail.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gangplank_service::rate_limited;

/// Bytes of an inode with all that belongs to it: its slot, its part of the index, and its
/// descriptor, or its reference with a name of at most [`INCLUDED_BYTES`].
pub(super) const INODE_BYTES: u64 = 160;

/// Longest name or file handle that [`INODE_BYTES`] includes.
pub(super) const INCLUDED_BYTES: usize = 24;

/// Bytes taken, and the limit.
#[derive(Debug)]
pub(super) struct InodeMemory {
    used: AtomicU64,
    limit: u64,
}

impl InodeMemory {
    /// `used` bytes taken of `limit` bytes, by the inodes and directories that an earlier worker of
    /// the guest recorded. May be more than `limit`, if the limit was lowered since.
    pub(super) fn with_used(used: u64, limit: u64) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicU64::new(used),
            limit,
        })
    }

    /// Bytes taken.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether one more inode fits.
    pub(super) fn has_room(&self) -> bool {
        self.used().saturating_add(INODE_BYTES) <= self.limit_of_inodes()
    }

    /// Takes the bytes of one more inode.
    ///
    /// # Errors
    /// ENOMEM if it does not fit.
    pub(super) fn take_inode(&self) -> io::Result<()> {
        self.take_within(INODE_BYTES, self.limit_of_inodes())
    }

    /// Takes bytes by which an inode is found again.
    ///
    /// # Errors
    /// ENOMEM if they do not fit.
    pub(super) fn take(&self, bytes: u64) -> io::Result<()> {
        self.take_within(bytes, self.limit)
    }

    /// Gives back bytes that were taken.
    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// ENOMEM, with a line in the log.
    pub(super) fn exhausted(&self) -> io::Error {
        rate_limited!(
            error,
            "what the guest knows of the share takes {} of at most {} bytes, so it gets ENOMEM; \
             raise --max-inode-memory",
            self.used(),
            self.limit
        );
        io::Error::from_raw_os_error(libc::ENOMEM)
    }

    fn take_within(&self, bytes: u64, limit: u64) -> io::Result<()> {
        let add = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map(drop)
            .map_err(|_| self.exhausted())
    }

    fn limit_of_inodes(&self) -> u64 {
        self.limit - self.limit / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_leave_an_eighth_to_the_names_of_others() {
        let memory = InodeMemory::with_used(0, 8000);
        let inodes = (0..100).filter(|_| memory.take_inode().is_ok()).count();
        assert_eq!(inodes, 7000 / 160);
        assert!(!memory.has_room());
        memory.take(8000 - memory.used()).expect("up to the limit");
        let error = memory.take(1).expect_err("beyond the limit");
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        memory.give_back(8000);
        assert!(memory.has_room() && memory.used() == 0);
    }

    #[test]
    fn what_an_earlier_worker_recorded_is_taken() {
        let memory = InodeMemory::with_used(6900, 8000);
        assert!(!memory.has_room());
        memory.take(1100).expect("up to the limit");
        memory.give_back(8000);
        assert_eq!(memory.used(), 0);
        let beyond = InodeMemory::with_used(9000, 8000);
        assert!(!beyond.has_room() && beyond.take(1).is_err());
    }
}
