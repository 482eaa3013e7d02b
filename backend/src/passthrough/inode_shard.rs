//! One shard of the inode table, and the node ids of its inodes.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use foldhash::fast::FixedState;
use gangplank_fuse::NodeId;
use parking_lot::RwLockWriteGuard;

use super::budget::Descriptor;
use super::errno::stale;
use super::mounts::{Identity, MountIndex};
use crate::state::arena::{Arena, Part};
use crate::state::descriptors::{Descriptors, Kind, Owner};
use crate::state::index::Index;
use crate::state::inodes::{self, InodeRecord};
use crate::state::slab::{CAPACITY, KEY_BITS, Key, Slab};
use crate::state::table::{Changing, Marked, TableRecord};

/// Number of shards: the bits of a node id above a [`Key`] select the shard.
pub(super) const SHARDS: usize = inodes::SHARDS;

const _: () = assert!(SHARDS == 1 << (64 - KEY_BITS));

/// One shard of the inode table. The table puts each shard under a lock.
#[derive(Debug)]
pub(super) struct Shard {
    number: usize,
    table: Part<TableRecord>,
    /// The inodes.
    pub(super) slab: Slab<InodeRecord, Arc<Descriptor>>,
    /// Finds inodes by the [`hash_of`] their identity.
    index: Index,
    descriptors: Descriptors,
    hasher: FixedState,
    /// Slab index at which the next eviction scan starts.
    pub(super) clock_hand: AtomicU32,
}

/// A shard that is locked for changes, and marked as changing in the arena.
pub(super) type ChangingShard<'a> = Changing<RwLockWriteGuard<'a, Shard>>;

impl Marked for Shard {
    fn mark(&self) -> &TableRecord {
        &self.table[0]
    }
}

impl Shard {
    /// The shard that is in an arena. It must be whole: see [`Shard::correct`].
    pub(super) fn new(arena: &Arc<Arena>, number: usize) -> Self {
        let table = arena.inode_table(number);
        let seed = arena.header().hash_seed.load(Ordering::Relaxed);
        Self {
            number,
            slab: Slab::new(
                table.clone(),
                arena.inodes(number),
                arena.used_inodes(number),
            ),
            index: Index::new(table.clone(), arena.inode_index(number)),
            table,
            descriptors: Descriptors::new(arena),
            hasher: FixedState::with_seed(seed),
            clock_hand: AtomicU32::new(0),
        }
    }

    /// Makes a shard whole that a worker left half changed when it died. The records are right.
    pub(super) fn correct(arena: &Arc<Arena>, number: usize) {
        if !arena.inode_table(number)[0].is_changing() {
            return;
        }
        let shard = Self::new(arena, number);
        let mut searchable = Vec::new();
        for (key, inode) in shard.slab.iter_from(0) {
            if inode.replaced.load(Ordering::Relaxed) == 0 {
                let hash = hash_of(&shard.hasher, inode.identity());
                searchable.push((key.index(), hash));
            }
        }
        shard
            .index
            .rebuild(shard.slab.len(), searchable.into_iter());
        let descriptors = shard
            .descriptors
            .correct_by(&shard.slab, shard.first_owner());
        let table = shard.mark();
        table.descriptors.store(descriptors, Ordering::Relaxed);
        table.end_change();
    }

    /// Forgets the descriptors of a whole shard that are lost. Returns the number of inodes to
    /// which nothing leads any more.
    pub(super) fn forget_lost(
        arena: &Arc<Arena>,
        number: usize,
        is_lost: impl Fn(RawFd) -> bool,
    ) -> usize {
        let shard = Self::new(arena, number);
        let has_lost = |inode: &InodeRecord| inode.descriptor.get().is_some_and(&is_lost);
        let inodes = shard.slab.iter_from(0);
        let lost: Vec<Key> = inodes
            .filter_map(|(key, inode)| has_lost(inode).then_some(key))
            .collect();
        shard.mark().begin_change();
        let mut unreachable = 0;
        for key in lost {
            shard.note_descriptor(key, None);
            let Some(inode) = shard.slab.get(key) else {
                continue;
            };
            inode.held.store(0, Ordering::Relaxed);
            unreachable += usize::from(inode.inode_ref().is_none());
        }
        shard.mark().end_change();
        unreachable
    }

    /// The descriptors of a whole shard that are held outside of the daemon.
    pub(super) fn held(arena: &Arc<Arena>, number: usize) -> Vec<RawFd> {
        let shard = Self::new(arena, number);
        let inodes = shard.slab.iter_from(0);
        let held = inodes.filter(|(_, inode)| inode.held.load(Ordering::Relaxed) != 0);
        held.filter_map(|(_, inode)| inode.descriptor.get())
            .collect()
    }

    /// The hash of an identity.
    pub(super) fn hash_of(&self, identity: Identity) -> u64 {
        hash_of(&self.hasher, identity)
    }

    /// Bytes that the inodes take in addition to those of each.
    pub(super) fn extra_bytes(&self) -> &AtomicU64 {
        &self.table[0].extra_bytes
    }

    /// Number of inodes with a descriptor.
    pub(super) fn descriptors(&self) -> u64 {
        self.table[0].descriptors.load(Ordering::Relaxed)
    }

    /// Finds the inode of an identity whose hash is `hash`.
    pub(super) fn find(&self, hash: u64, identity: Identity) -> Option<(Key, &InodeRecord)> {
        let same = |index| {
            let found = self.slab.at(index);
            found.is_some_and(|(_, inode)| {
                inode.ino.load(Ordering::Relaxed) == identity.ino && inode.identity() == identity
            })
        };
        self.slab.at(self.index.find(hash, same)?)
    }

    /// Adds an inode to the index.
    pub(super) fn index(&self, hash: u64, key: Key) {
        let hash_of = |index| Some(self.hash_of(self.slab.at(index)?.1.identity()));
        self.index
            .insert(hash, key.index(), self.slab.len(), hash_of);
    }

    /// Removes an inode from the index, if it is there.
    pub(super) fn unindex(&self, hash: u64, key: Key) {
        if let Some(inode) = self.slab.get(key) {
            inode.replaced.store(1, Ordering::Release);
        }
        self.index.remove(hash, key.index());
    }

    /// Frees memory when most of it is unused. Returns whether the index became smaller, which it
    /// does whenever the shard has lost nine tenths of its inodes.
    pub(super) fn trim(&mut self) -> bool {
        let hash_of = |index| Some(self.hash_of(self.slab.at(index)?.1.identity()));
        let has_shrunk = self.index.shrink(self.slab.len(), hash_of);
        self.slab.trim();
        has_shrunk
    }

    /// Notes that an inode has a descriptor, or none any more.
    pub(super) fn note_descriptor(&self, key: Key, descriptor: Option<RawFd>) {
        let Some(inode) = self.slab.get(key) else {
            return;
        };
        let count = &self.table[0].descriptors;
        if let Some(old) = inode.descriptor.get() {
            self.descriptors.disown(old);
            count.fetch_sub(1, Ordering::Relaxed);
        }
        inode.descriptor.set(descriptor);
        if let Some(descriptor) = descriptor {
            let owner = Owner::new(Kind::Inode, self.first_owner() + key.index());
            self.descriptors.own(descriptor, owner);
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The descriptor that this worker holds for an inode.
    pub(super) fn held_descriptor(&self, key: Key) -> Option<&Arc<Descriptor>> {
        self.slab.held(key)
    }

    /// Stores a descriptor of an inode that holds none.
    pub(super) fn hold_descriptor(&mut self, key: Key, descriptor: &Arc<Descriptor>) {
        let number = descriptor.as_fd().as_raw_fd();
        let noted = self.slab.get(key).map(|inode| inode.descriptor.get());
        if noted.flatten() != Some(number) {
            self.note_descriptor(key, Some(number));
        }
        if let Some(held) = self.slab.held_mut(key) {
            *held = Some(Arc::clone(descriptor));
        }
    }

    /// The number that the inode at index 0 has among the owners of descriptors.
    fn first_owner(&self) -> u32 {
        // There are 16 shards.
        u32::try_from(self.number * CAPACITY).unwrap_or(0)
    }
}

/// The hash under which the index stores an identity.
pub(super) fn hash_of(hasher: &FixedState, identity: Identity) -> u64 {
    let mut state = hasher.build_hasher();
    let MountIndex(mount) = identity.mount;
    state.write_u32(mount);
    state.write_u64(identity.ino);
    state.finish()
}

/// Decodes a node id of this daemon to shard index and key. Keys are at least 2^24, so 0 and the
/// root's 1 are never in the table.
pub(super) fn decode_node_id(id: NodeId) -> io::Result<(usize, Key)> {
    let raw = id.get();
    let key = Key::from_raw(raw >> SHARDS.trailing_zeros()).ok_or_else(stale)?;
    // The remainder is below `SHARDS`, which is 16.
    Ok((usize::try_from(raw % SHARDS as u64).unwrap_or(0), key))
}

/// Encodes shard index and key as a node id of this daemon.
pub(super) fn encode_node_id(shard: usize, key: Key) -> NodeId {
    NodeId::new(key.raw() << SHARDS.trailing_zeros() | shard as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_no_node_ids_are_not_taken_apart() {
        for raw in [0, 1, 15, u64::MAX] {
            let found =
                decode_node_id(NodeId::new(raw)).map(|(shard, key)| encode_node_id(shard, key));
            assert!(found.is_err() || found.is_ok_and(|id| id.get() == raw));
        }
    }
}
