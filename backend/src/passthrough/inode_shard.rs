//! One shard of the inode table, and the node ids of its inodes.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::atomic::AtomicU32;

use gangplank_fuse::NodeId;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::errno::stale;
use super::inode::Inode;
use super::mounts::{Identity, MountIndex};
use super::slab::{KEY_BITS, Key, Slab};

/// Number of shards: the bits of a node id above a [`Key`] select the shard.
pub(super) const SHARDS: usize = 1 << (64 - KEY_BITS);

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
    let MountIndex(mount) = identity.mount;
    state.write_u32(mount);
    state.write_u64(identity.ino);
    state.finish()
}

/// Decodes a node id to shard index and key. Keys are at least 2^24, so 0 and the root's 1 are
/// never in the table.
pub(super) fn decode_node_id(id: NodeId) -> io::Result<(usize, Key)> {
    let raw = id.get();
    let key = Key::from_raw(raw >> SHARDS.trailing_zeros()).ok_or_else(stale)?;
    // The remainder is below `SHARDS`, which is 16.
    Ok((usize::try_from(raw % SHARDS as u64).unwrap_or(0), key))
}

/// Encodes shard index and key as a node id.
pub(super) fn encode_node_id(shard: usize, key: Key) -> NodeId {
    NodeId::new(key.raw() << SHARDS.trailing_zeros() | shard as u64)
}
