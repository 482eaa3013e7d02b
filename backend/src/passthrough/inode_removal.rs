//! Removing inodes that the guest has forgotten from the inode table.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::NodeId;
use gangplank_service::rate_limited;

use super::budget::{Descriptor, Permit, PermitFor};
use super::inode_memory::INODE_BYTES;
use super::inode_shard::{SHARDS, Shard};
use super::inode_table::InodeTable;
use crate::state::heap::Block;
use crate::state::slab::Key;
use crate::sys::{allocator, process};

/// What an inode had that the guest has forgotten.
#[derive(Debug)]
struct Removed {
    descriptor: Option<Arc<Descriptor>>,
    inode_ref: Option<Block>,
    /// A holder has a duplicate of the descriptor.
    is_held: bool,
    /// Most of what there was is free now.
    has_shrunk: bool,
}

impl InodeTable {
    /// Subtracts lookups. At zero the inode is removed and its descriptor closed.
    pub(super) fn forget(&self, id: NodeId, count: u64) {
        let Ok((shard_index, key)) = self.key_of(id) else {
            rate_limited!(
                warn,
                "a guest sent FORGET for node {:#x}, which is not a valid node id",
                id.get()
            );
            return;
        };
        let emptied = {
            let shard = self.read(shard_index);
            let Some(inode) = shard.slab.get(key) else {
                rate_limited!(
                    warn,
                    "a guest sent FORGET for node {:#x}, which it does not hold",
                    id.get()
                );
                return;
            };
            inode.remove_lookups(id, count)
        };
        if emptied && let Some(removed) = self.remove_unused(shard_index, key) {
            self.discard(removed);
            self.fd_cache().remove(id);
        }
    }

    /// Removes an inode unless another thread has looked it up in the meantime.
    fn remove_unused(&self, shard_index: usize, key: Key) -> Option<Removed> {
        let mut shard = self.write(shard_index);
        let inode = shard.slab.get(key)?;
        if inode.lookup_count.load(Ordering::Relaxed) != 0 {
            return None;
        }
        if !inode.has_descriptor() || shard.held_descriptor(key).is_some() {
            return self.remove(&mut shard, key);
        }
        drop(shard);
        // The descriptor has to be closed, and so must be taken over.
        let _ = self.adopt(shard_index, key);
        let mut shard = self.write(shard_index);
        let inode = shard.slab.get(key)?;
        let is_unused = inode.lookup_count.load(Ordering::Relaxed) == 0;
        is_unused.then(|| self.remove(&mut shard, key))?
    }

    /// Removes an inode. The caller unlocks the shard and discards what it had.
    fn remove(&self, shard: &mut Shard, key: Key) -> Option<Removed> {
        let identity = shard.slab.get(key)?.identity();
        shard.unindex(shard.hash_of(identity), key);
        shard.note_descriptor(key, None);
        let inode = shard.slab.get(key)?;
        let inode_ref = inode.inode_ref();
        let is_held = inode.held.load(Ordering::Relaxed) != 0;
        let held = shard.slab.remove(key)?;
        let has_shrunk = shard.trim();
        let extra = inode_ref.map_or(0, |inode_ref| self.refs().extra_bytes(inode_ref));
        shard.extra_bytes().fetch_sub(extra, Ordering::Relaxed);
        self.memory().give_back(INODE_BYTES + extra);
        Some(Removed {
            descriptor: held,
            inode_ref,
            is_held,
            has_shrunk,
        })
    }

    /// Frees what an inode had. No shard may be locked, because close may block.
    fn discard(&self, removed: Removed) {
        if let (true, Some(descriptor)) = (removed.is_held, &removed.descriptor) {
            self.release_held(descriptor);
        }
        drop(removed.descriptor);
        if let Some(inode_ref) = removed.inode_ref {
            self.refs().free(inode_ref);
        }
        if removed.has_shrunk {
            allocator::give_back();
        }
    }

    /// Removes all inodes.
    pub(super) fn clear(&self) {
        for shard_index in 0..SHARDS {
            let mut shard = self.write(shard_index);
            let keys: Vec<Key> = shard.slab.iter_from(0).map(|(key, _)| key).collect();
            let mut removed = Vec::with_capacity(keys.len());
            for key in keys {
                let inode = shard.slab.get(key);
                let number = inode.and_then(|inode| inode.descriptor.get());
                if shard.held_descriptor(key).is_none()
                    && let Some(number) = number
                {
                    let permit = Permit::of_counted(self.budget(), PermitFor::Inode);
                    let adopted = process::adopt(number);
                    let descriptor = adopted.map(|fd| Descriptor::new(fd, permit));
                    removed.extend(descriptor.ok().map(|descriptor| Removed {
                        descriptor: Some(Arc::new(descriptor)),
                        inode_ref: None,
                        is_held: true,
                        has_shrunk: false,
                    }));
                }
                removed.extend(self.remove(&mut shard, key));
            }
            drop(shard);
            removed.into_iter().for_each(|one| self.discard(one));
        }
        self.refs().forget_lost();
        self.fd_cache().clear();
        self.foreign_ids.clear();
    }
}
