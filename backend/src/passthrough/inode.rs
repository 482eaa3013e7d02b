//! One inode of a guest's inode table.

use std::sync::atomic::{AtomicU32, Ordering};

use gangplank_fuse::NodeId;
use gangplank_service::rate_limited;

use super::file_type::FileType;
use super::mounts::{Identity, MountIndex};
use crate::state::heap::Block;
use crate::state::inodes::InodeRecord;

/// An upper bound of the file size in bytes that the guest's kernel knows, from the attributes it
/// received and from its own writes.
///
/// A short read that ends at this offset ends at the end of the file as the guest sees it, so no
/// second system call is needed to confirm that. A bound that is too large costs that system call.
/// One that is too small would hide a read error, so attributes only raise the bound: they may
/// have been read before a write that another thread has counted already. The size has 32 bits
/// because a guest may know millions of inodes; larger sizes count as unknown.
#[derive(Debug, Clone, Copy)]
pub(super) struct KnownSize<'a>(&'a AtomicU32);

impl KnownSize<'_> {
    const UNKNOWN: u32 = u32::MAX;

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

impl InodeRecord {
    /// Fills the record of an inode that the guest has looked up once. `size` is the size that the
    /// guest receives.
    pub(super) fn fill(&self, identity: Identity, size: u64) {
        let MountIndex(mount) = identity.mount;
        self.mount.store(mount, Ordering::Relaxed);
        self.ino.store(identity.ino, Ordering::Relaxed);
        let file_type = identity.file_type.number();
        self.file_type.store(file_type, Ordering::Relaxed);
        self.descriptor.set(None);
        self.reference.store(0, Ordering::Relaxed);
        self.replaced.store(0, Ordering::Relaxed);
        self.held.store(0, Ordering::Relaxed);
        self.foreign_id.store(0, Ordering::Relaxed);
        self.used.store(1, Ordering::Relaxed);
        self.lookup_count.store(1, Ordering::Relaxed);
        self.open_count.store(0, Ordering::Relaxed);
        self.ctime.store(0, Ordering::Relaxed);
        self.ctime_noted.store(0, Ordering::Relaxed);
        self.known_size().set(size);
    }

    /// Mount, inode number and type.
    pub(super) fn identity(&self) -> Identity {
        Identity {
            mount: MountIndex(self.mount.load(Ordering::Relaxed)),
            ino: self.ino.load(Ordering::Relaxed),
            file_type: FileType::from_number(self.file_type.load(Ordering::Relaxed)),
        }
    }

    /// Whether the inode has a descriptor.
    pub(super) fn has_descriptor(&self) -> bool {
        self.descriptor.get().is_some()
    }

    /// How to reopen the inode when it has no descriptor.
    pub(super) fn inode_ref(&self) -> Option<Block> {
        Block::from_raw(self.reference.load(Ordering::Acquire))
    }

    /// The file size that the guest's kernel knows.
    pub(super) fn known_size(&self) -> KnownSize<'_> {
        KnownSize(&self.known_size)
    }

    /// Marks the inode as recently used.
    pub(super) fn touch(&self) {
        // The flag is usually set already; not writing keeps the cache line shared.
        if self.used.load(Ordering::Relaxed) == 0 {
            self.used.store(1, Ordering::Relaxed);
        }
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
    use super::*;

    #[test]
    fn a_size_is_known_until_it_is_too_large_or_forgotten() {
        let size = AtomicU32::new(10);
        let known = KnownSize(&size);
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
