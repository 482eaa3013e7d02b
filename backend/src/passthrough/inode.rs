//! One inode of a guest's inode table, and one shard of the table.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU16, AtomicU32, AtomicU64, Ordering};

use gangplank_fuse::NodeId;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::budget::Descriptor;
use super::mounts::Identity;
use super::reopen::InodeRef;
use super::slab::{Key, Slab};
use crate::rate_limited;

/// The type of a file, as far as the daemon treats types differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device node, FIFO or socket. The daemon never opens one.
    Special,
}

impl FileType {
    /// Decodes the type bits of `st_mode`.
    pub(super) fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFREG => Self::Regular,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            _ => Self::Special,
        }
    }

    /// Whether opening a file of this type has no side effect.
    pub(super) fn can_be_opened(self) -> bool {
        matches!(self, Self::Regular | Self::Directory)
    }
}

/// One inode. At least one of `descriptor` and `inode_ref` is set.
pub(super) struct Inode {
    /// Mount and inode number.
    pub(super) identity: Identity,
    /// Type of the file.
    pub(super) file_type: FileType,
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

/// The file size in bytes that the guest's kernel knows, from the last attributes it received or
/// from its own writes since then.
///
/// A short read that ends at this offset ends at the end of the file as the guest sees it, so no
/// second system call is needed to confirm that. The size has 32 bits because a guest may know
/// millions of inodes; larger sizes count as unknown.
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

    /// The guest received `size` with new attributes.
    pub(super) fn set(&self, size: u64) {
        self.0.store(Self::pack(size), Ordering::Relaxed);
    }

    /// The guest wrote up to the offset `end`.
    pub(super) fn grow(&self, end: u64) {
        // UNKNOWN is the largest value, so it stays.
        self.0.fetch_max(Self::pack(end), Ordering::Relaxed);
    }

    /// The guest changed the size in a way that this type does not compute.
    pub(super) fn forget(&self) {
        self.0.store(Self::UNKNOWN, Ordering::Relaxed);
    }

    fn pack(size: u64) -> u32 {
        u32::try_from(size).unwrap_or(Self::UNKNOWN)
    }
}

/// Initial capacity of a shard's index, in inodes: the largest that fits hashbrown's 64 buckets.
const FIRST_INODES: usize = 56;

/// One shard of the inode table. The table puts each shard under a lock.
pub(super) struct Shard {
    /// The inodes.
    pub(super) slab: Slab<Inode>,
    /// Slab indices of the inodes, by the [`hash_of`] their identity.
    pub(super) by_identity: HashTable<u32>,
    /// Slab index at which the next eviction scan starts.
    pub(super) clock_hand: AtomicU32,
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            slab: Slab::default(),
            by_identity: HashTable::with_capacity(FIRST_INODES),
            clock_hand: AtomicU32::new(0),
        }
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

impl Shard {
    /// Finds the inode of an identity whose hash is `hash`.
    pub(super) fn find(&self, hash: u64, identity: Identity) -> Option<(Key, &Inode)> {
        let same = |index: &u32| {
            self.slab
                .at(*index)
                .is_some_and(|(_, inode)| inode.identity == identity)
        };
        self.slab.at(*self.by_identity.find(hash, same)?)
    }

    /// Removes an inode from the index, if it is there.
    pub(super) fn unindex(&mut self, hash: u64, key: Key) {
        if let Ok(entry) = self
            .by_identity
            .find_entry(hash, |index| *index == key.index())
        {
            entry.remove();
        }
    }

    /// Frees index memory when most of it is unused.
    pub(super) fn shrink(&mut self, hasher: &DefaultHashBuilder) {
        if self.by_identity.capacity() > 4 * self.by_identity.len() + 4 * FIRST_INODES {
            let slab = &self.slab;
            let room = (2 * self.by_identity.len()).max(FIRST_INODES);
            self.by_identity.shrink_to(room, |index| {
                slab.at(*index)
                    .map_or(0, |(_, inode)| hash_of(hasher, inode.identity))
            });
        }
    }
}

/// The hash under which the index stores an identity.
pub(super) fn hash_of(hasher: &DefaultHashBuilder, identity: Identity) -> u64 {
    let mut state = hasher.build_hasher();
    state.write_u32(identity.mount.0);
    state.write_u64(identity.ino);
    state.finish()
}

#[cfg(test)]
mod tests {
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
        known.grow(4);
        assert_eq!(known.get(), Some(10));
        known.grow(4096);
        assert_eq!(known.get(), Some(4096));
        known.set(3);
        assert_eq!(known.get(), Some(3));
        for large in [u64::from(u32::MAX), 1 << 32, u64::MAX] {
            known.grow(large);
            assert_eq!(known.get(), None);
            known.set(0);
            assert_eq!(known.get(), Some(0));
            known.set(large);
            known.grow(7);
            assert_eq!(known.get(), None);
            known.set(0);
        }
        known.forget();
        known.grow(1);
        assert_eq!(known.get(), None);
    }
}
