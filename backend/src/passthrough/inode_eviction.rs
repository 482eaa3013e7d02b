//! Evicting descriptors from the inode table, by the CLOCK algorithm.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::NodeId;

use super::budget::Descriptor;
use super::inode_ref::InodeRef;
use super::inode_shard::{SHARDS, decode_node_id, encode_node_id};
use super::inode_table::InodeTable;
use super::mounts::Identity;

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
        for (key, inode) in round {
            shard
                .clock_hand
                .store(key.index().wrapping_add(1), Ordering::Relaxed);
            let Some(descriptor) = &inode.descriptor else {
                continue;
            };
            // An earlier attempt found that the inode cannot be reopened, or a request uses the
            // descriptor.
            if descriptor.is_pinned() || Arc::strong_count(descriptor) > 1 {
                continue;
            }
            if inode.used.swap(false, Ordering::Relaxed) {
                continue;
            }
            found.push(EvictionCandidate {
                id: encode_node_id(shard_index, key),
                identity: inode.identity,
                descriptor: Arc::clone(descriptor),
                has_stable_ref: inode
                    .inode_ref
                    .as_ref()
                    .is_some_and(|inode_ref| inode_ref.survives_rename()),
            });
            if found.len() >= count {
                break;
            }
        }
        found
    }

    /// Takes an inode's descriptor; its next use has to reopen it. Returns false if that frees no
    /// descriptor: the guest has forgotten the inode in the meantime, a request uses it, or there
    /// is no reference to reopen it or no memory for one.
    pub(super) fn evict(&self, candidate: EvictionCandidate, inode_ref: Option<InodeRef>) -> bool {
        let Ok((shard_index, key)) = decode_node_id(candidate.id) else {
            return false;
        };
        let taken = {
            let mut shard = self.write(shard_index);
            let Some(inode) = shard.slab.get_mut(key) else {
                return false;
            };
            // The table's and the candidate's. More cannot be made while the shard is locked.
            if Arc::strong_count(&candidate.descriptor) > 2 {
                return false;
            }
            if let Some(inode_ref) = inode_ref {
                if self.memory().take(inode_ref.extra_bytes()).is_err() {
                    return false;
                }
                let old = inode.inode_ref.replace(Box::new(inode_ref));
                self.memory()
                    .give_back(old.map_or(0, |old| old.extra_bytes()));
            }
            if inode.inode_ref.is_none() {
                return false;
            }
            inode.descriptor.take()
        };
        taken.is_some()
    }
}
