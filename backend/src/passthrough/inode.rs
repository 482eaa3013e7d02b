//! One inode as a guest's table keeps it, and a part of the table.

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

/// What an inode is, as far as it decides what may be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device node, FIFO or socket: never opened by the daemon.
    Special,
}

impl FileType {
    /// From a mode's type bits.
    pub(super) fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFREG => Self::Regular,
            libc::S_IFDIR => Self::Directory,
            libc::S_IFLNK => Self::Symlink,
            _ => Self::Special,
        }
    }

    /// Whether opening it has no effect but a descriptor.
    pub(super) fn can_be_opened(self) -> bool {
        matches!(self, Self::Regular | Self::Directory)
    }
}

/// One inode. At least one of `descriptor` and `recall` is there.
pub(super) struct Inode {
    /// Which it is.
    pub(super) identity: Identity,
    /// What it is.
    pub(super) file_type: FileType,
    /// Used since the clock's hand last passed.
    pub(super) used: AtomicBool,
    /// Open files of the guest.
    pub(super) open_count: AtomicU32,
    /// When it was last changed, in nanoseconds since the epoch, as of the guest's last open; 0 where that cannot be relied on.
    pub(super) ctime: AtomicI64,
    /// Since when that is known, in seconds that wrap.
    pub(super) ctime_noted: AtomicU16,
    /// The size that the guest knows.
    pub(super) known_size: KnownSize,
    /// Look-ups that the guest has not undone.
    pub(super) lookup_count: AtomicU64,
    /// What holds it.
    pub(super) descriptor: Option<Arc<Descriptor>>,
    /// How to find it without.
    pub(super) inode_ref: Option<Box<InodeRef>>,
}

/// A file's size in bytes as the guest knows it: from the last attributes it got, or from its own
/// writes since.
///
/// A read that is short at just this offset has come to the end of the file, as far as the guest
/// can tell, so that it need not be asked for by another system call. Kept in 32 bits, because a
/// guest may know millions of inodes: larger sizes count as not known.
#[derive(Debug)]
pub(super) struct KnownSize(AtomicU32);

impl KnownSize {
    const UNKNOWN: u32 = u32::MAX;

    /// As the guest is told.
    pub(super) fn new(size: u64) -> Self {
        Self(AtomicU32::new(Self::pack(size)))
    }

    /// The size, unless it is not known.
    pub(super) fn get(&self) -> Option<u64> {
        match self.0.load(Ordering::Relaxed) {
            Self::UNKNOWN => None,
            size => Some(size.into()),
        }
    }

    /// The guest is told that the size is `size`.
    pub(super) fn set(&self, size: u64) {
        self.0.store(Self::pack(size), Ordering::Relaxed);
    }

    /// The guest has written up to `end`.
    pub(super) fn grow(&self, end: u64) {
        // Unknown is the largest value, and stays.
        self.0.fetch_max(Self::pack(end), Ordering::Relaxed);
    }

    /// The guest has changed the size in a way that is not computed here.
    pub(super) fn forget(&self) {
        self.0.store(Self::UNKNOWN, Ordering::Relaxed);
    }

    fn pack(size: u64) -> u32 {
        u32::try_from(size).unwrap_or(Self::UNKNOWN)
    }
}

/// InodeTable that the index has room for from the start.
const FIRST_INODES: usize = 56;

/// A part of the table, to be put under a lock.
pub(super) struct Shard {
    /// The inodes.
    pub(super) slab: Slab<Inode>,
    /// Their positions, by what [`hash_of`] makes of their identity.
    pub(super) by_identity: HashTable<u32>,
    /// Where the clock's hand stands.
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
    /// Notes that it was used.
    pub(super) fn touch(&self) {
        // Most often it is set already, and a shared cache line is better left alone.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether no look-up is left.
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
                "a guest forgets node {:#x} {count} times, and looked it up {before} times",
                id.get()
            );
        }
        before <= count
    }
}

impl Shard {
    /// The inode of an identity that hashes to `hash`.
    pub(super) fn find(&self, hash: u64, identity: Identity) -> Option<(Key, &Inode)> {
        let same = |index: &u32| {
            self.slab
                .at(*index)
                .is_some_and(|(_, inode)| inode.identity == identity)
        };
        self.slab.at(*self.by_identity.find(hash, same)?)
    }

    /// Takes an inode out of the index, if it is in it.
    pub(super) fn unindex(&mut self, hash: u64, key: Key) {
        if let Ok(entry) = self
            .by_identity
            .find_entry(hash, |index| *index == key.index())
        {
            entry.remove();
        }
    }

    /// Gives memory of the index back when most of it is unused.
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

/// Where in an index an identity belongs.
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
        // An inode takes a slot, some bytes of the index, and an allocation for the descriptor or for the way back.
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
