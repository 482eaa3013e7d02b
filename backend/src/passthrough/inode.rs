//! One inode of a guest's inode table, and one shard of the table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU32, AtomicU64, Ordering};

use gangplank_fuse::NodeId;
use gangplank_service::rate_limited;

use super::budget::Descriptor;
use super::inode_memory::INODE_BYTES;
use super::inode_ref::InodeRef;
use super::mounts::Identity;

/// One inode. At least one of `descriptor` and `inode_ref` is set.
pub(super) struct Inode {
    /// Mount, inode number and type.
    pub(super) identity: Identity,
    /// Referenced since the clock hand last passed (CLOCK page replacement).
    pub(super) used: AtomicBool,
    /// Number of the guest's open files on this inode.
    pub(super) open_count: AtomicU32,
    /// The ctime at the guest's last open, in nanoseconds since the epoch; 0 if it is not reliable.
    pub(super) ctime: AtomicI64,
    /// When `ctime` was recorded, in seconds modulo 2^16.
    pub(super) ctime_noted: AtomicU16,
    /// The file size that the guest's kernel knows.
    pub(super) known_size: KnownSize,
    /// Number of lookups the guest has not forgotten yet.
    pub(super) lookup_count: AtomicU64,
    /// The `O_PATH` descriptor that pins the inode.
    pub(super) descriptor: Option<Arc<Descriptor>>,
    /// How to reopen the inode when `descriptor` is `None`.
    pub(super) inode_ref: Option<Box<InodeRef>>,
}

/// An upper bound of the file size in bytes that the guest's kernel knows, from the attributes it
/// received and from its own writes.
///
/// A short read that ends at this offset ends at the end of the file as the guest sees it, so no
/// second system call is needed to confirm that. A bound that is too large costs that system call.
/// One that is too small would hide a read error, so attributes only raise the bound: they may
/// have been read before a write that another thread has counted already. The size has 32 bits
/// because a guest may know millions of inodes; larger sizes count as unknown.
#[derive(Debug)]
pub(super) struct KnownSize(AtomicU32);

impl KnownSize {
    const UNKNOWN: u32 = u32::MAX;

    /// The guest received `size` with the inode's attributes.
    pub(super) fn new(size: u64) -> Self {
        Self(AtomicU32::new(Self::pack(size)))
    }

    /// The size, or `None` if it is unknown.
    pub(super) fn get(&self) -> Option<u64> {
        match self.0.load(Ordering::Relaxed) {
            Self::UNKNOWN => None,
            size => Some(size.into()),
        }
    }

    /// The guest set the size itself. Its kernel lets no write pass meanwhile.
    pub(super) fn set(&self, size: u64) {
        self.0.store(Self::pack(size), Ordering::Relaxed);
    }

    /// The guest received `size` with attributes, or wrote up to that offset.
    pub(super) fn raise(&self, size: u64) {
        // UNKNOWN is the largest value, so it stays.
        self.0.fetch_max(Self::pack(size), Ordering::Relaxed);
    }

    /// The guest changed the size in a way that this type does not compute.
    pub(super) fn forget(&self) {
        self.0.store(Self::UNKNOWN, Ordering::Relaxed);
    }

    fn pack(size: u64) -> u32 {
        u32::try_from(size).unwrap_or(Self::UNKNOWN)
    }
}

impl Inode {
    /// Marks the inode as recently used.
    pub(super) fn touch(&self) {
        // The flag is usually set already; not writing keeps the cache line shared.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Bytes that count as the inode's memory.
    pub(super) fn bytes(&self) -> u64 {
        let extra = self
            .inode_ref
            .as_ref()
            .map_or(0, |known| known.extra_bytes());
        INODE_BYTES + extra
    }

    /// Subtracts `count` lookups and returns whether none are left.
    pub(super) fn remove_lookups(&self, id: NodeId, count: u64) -> bool {
        let before = self
            .lookup_count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lookup_count| {
                Some(lookup_count.saturating_sub(count))
            })
            .unwrap_or(0);
        if before < count {
            rate_limited!(
                warn,
                "a guest sent FORGET for {count} lookups of node {:#x}, but has only {before}",
                id.get()
            );
        }
        before <= count
    }
}

#[cfg(test)]
mod tests {
    use super::super::slab::Key;
    use super::*;

    #[test]
    fn a_million_inodes_fit_a_small_machine() {
        // Besides its slot, an inode takes some bytes of the index and the allocation of its
        // descriptor or inode reference.
        assert!(size_of::<Option<(Key, Inode)>>() <= 64);
    }

    #[test]
    fn a_size_is_known_until_it_is_too_large_or_forgotten() {
        let known = KnownSize::new(10);
        known.raise(4);
        assert_eq!(known.get(), Some(10));
        known.raise(4096);
        assert_eq!(known.get(), Some(4096));
        known.set(3);
        assert_eq!(known.get(), Some(3));
        for large in [u64::from(u32::MAX), 1 << 32, u64::MAX] {
            known.raise(large);
            assert_eq!(known.get(), None);
            known.set(0);
            assert_eq!(known.get(), Some(0));
            known.set(large);
            known.raise(7);
            assert_eq!(known.get(), None);
            known.set(0);
        }
        known.forget();
        known.raise(1);
        assert_eq!(known.get(), None);
    }
}
