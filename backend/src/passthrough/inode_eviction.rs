//! Evicting descriptors from the inode table, by the CLOCK algorithm.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::NodeId;

use super::budget::Descriptor;
use super::errno::stale;
use super::inode_ref::InodeRef;
use super::inode_shard::SHARDS;
use super::inode_shard::Shard;
use super::inode_table::InodeTable;
use super::mounts::Identity;
use crate::state::heap::Block;
use crate::state::inodes::InodeRecord;
use crate::state::slab::Key;

/// An inode whose descriptor can be evicted.
pub(super) struct EvictionCandidate {
    id: NodeId,
    /// The descriptor to evict.
    pub(super) descriptor: Arc<Descriptor>,
    /// Mount, inode number and type.
    pub(super) identity: Identity,
    /// Whether the inode has a reference that stays valid when the file is renamed.
    pub(super) has_stable_ref: bool,
}

impl InodeTable {
    /// Up to `count` inodes of one shard that were not used recently. Each call scans the next
    /// shard.
    pub(super) fn eviction_candidates(&self, count: usize) -> Vec<EvictionCandidate> {
        let shard_index = self.next_shard.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let shard = self.read(shard_index);
        let start = shard.clock_hand.load(Ordering::Relaxed);
        let mut found = Vec::new();
        let round = shard.slab.iter_from(start).chain(
            shard
                .slab
                .iter_from(0)
                .take_while(|(key, _)| key.index() < start),
        );
        let mut earlier = Vec::new();
        for (key, inode) in round {
            shard
                .clock_hand
                .store(key.index().wrapping_add(1), Ordering::Relaxed);
            // What is held outside of the daemon is so because no reference leads to it.
            if !inode.has_descriptor() || inode.held.load(Ordering::Relaxed) != 0 {
                continue;
            }
            let held = shard.held_descriptor(key);
            // An earlier attempt found that the inode cannot be reopened, or a request uses the
            // descriptor.
            if held.is_some_and(|held| held.is_pinned() || Arc::strong_count(held) > 1) {
                continue;
            }
            if inode.used.swap(0, Ordering::Relaxed) != 0 {
                continue;
            }
            match held {
                Some(held) => found.push(EvictionCandidate {
                    id: self.id_of(shard_index, key, inode),
                    identity: inode.identity(),
                    descriptor: Arc::clone(held),
                    has_stable_ref: self.has_stable_ref(inode),
                }),
                None => {
                    let id = self.id_of(shard_index, key, inode);
                    earlier.push((key, id, inode.identity(), self.has_stable_ref(inode)));
                }
            }
            if found.len() + earlier.len() >= count {
                break;
            }
        }
        drop(shard);
        for (key, id, identity, has_stable_ref) in earlier {
            if let Ok(descriptor) = self.adopt(shard_index, key) {
                found.push(EvictionCandidate {
                    id,
                    identity,
                    descriptor,
                    has_stable_ref,
                });
            }
        }
        found
    }

    /// Takes an inode's descriptor; its next use has to reopen it. Returns false if that frees no
    /// descriptor: the guest has forgotten the inode in the meantime, a request uses it, or there
    /// is no reference to reopen it or no memory for one.
    pub(super) fn evict(&self, candidate: EvictionCandidate, inode_ref: Option<InodeRef>) -> bool {
        let Ok((shard_index, key)) = self.key_of(candidate.id) else {
            return false;
        };
        let mut old = None;
        let taken = {
            let mut shard = self.write(shard_index);
            // The table's and the candidate's. More cannot be made while the shard is locked.
            if Arc::strong_count(&candidate.descriptor) > 2 {
                return false;
            }
            if let Some(inode_ref) = inode_ref {
                match self.set_ref(&shard, key, &inode_ref) {
                    Ok(replaced) => old = replaced,
                    Err(_) => return false,
                }
            }
            let inode = shard.slab.get(key);
            if inode.and_then(InodeRecord::inode_ref).is_none() {
                return false;
            }
            let taken = shard.slab.held_mut(key).and_then(Option::take);
            if taken.is_some() {
                shard.note_descriptor(key, None);
            }
            taken
        };
        if let Some(old) = old {
            self.refs().free(old);
        }
        taken.is_some()
    }

    fn has_stable_ref(&self, inode: &InodeRecord) -> bool {
        let inode_ref = inode.inode_ref();
        inode_ref.is_some_and(|inode_ref| self.refs().survives_rename(inode_ref))
    }

    /// Stores how to reopen an inode. Returns the former reference, to be freed without the lock.
    ///
    /// # Errors
    /// ENOMEM if it does not fit the guest's memory; ESTALE if the guest has forgotten the inode.
    pub(super) fn set_ref(
        &self,
        shard: &Shard,
        key: Key,
        inode_ref: &InodeRef,
    ) -> io::Result<Option<Block>> {
        let inode = shard.slab.get(key).ok_or_else(stale)?;
        let extra = inode_ref.extra_bytes();
        self.memory().take(extra)?;
        let stored = self.refs().store(inode_ref);
        let stored = stored.inspect_err(|_| self.memory().give_back(extra))?;
        shard.extra_bytes().fetch_add(extra, Ordering::Relaxed);
        let old = Block::from_raw(inode.reference.swap(stored.raw(), Ordering::AcqRel));
        let extra = old.map_or(0, |old| self.refs().extra_bytes(old));
        shard.extra_bytes().fetch_sub(extra, Ordering::Relaxed);
        self.memory().give_back(extra);
        Ok(old)
    }
}
