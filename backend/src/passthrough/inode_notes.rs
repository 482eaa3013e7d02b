//! References of inodes that have descriptors, noted for the case that these are lost, and the
//! descriptors that are held outside of the daemon ([`crate::holder`]).

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::NodeId;

use super::budget::Descriptor;
use super::inode_ref::InodeRef;
use super::inode_table::InodeTable;
use super::mounts::Identity;
use crate::holder::client::Holder;

impl InodeTable {
    /// How to reopen an inode, whether it has a descriptor or not.
    pub(super) fn noted_ref(&self, id: NodeId) -> Option<InodeRef> {
        let (shard, key) = self.key_of(id).ok()?;
        let shard = self.read(shard);
        let block = shard.slab.get(key)?.inode_ref()?;
        Some(self.refs().load(block))
    }

    /// Node id and reference of the inode with this identity.
    pub(super) fn find_noted(&self, identity: Identity) -> Option<(NodeId, InodeRef)> {
        let (hash, shard_index) = self.locate(identity);
        let shard = self.read(shard_index);
        let (key, inode) = shard.find(hash, identity)?;
        let block = inode.inode_ref()?;
        Some((self.id_of(shard_index, key, inode), self.refs().load(block)))
    }

    /// Node id of the inode with this identity.
    pub(super) fn find_id(&self, identity: Identity) -> Option<NodeId> {
        let (hash, shard_index) = self.locate(identity);
        let shard = self.read(shard_index);
        let (key, inode) = shard.find(hash, identity)?;
        Some(self.id_of(shard_index, key, inode))
    }

    /// Notes how to reopen an inode that has a descriptor. Without memory for that, its former
    /// reference stays.
    pub(super) fn note_ref(&self, id: NodeId, inode_ref: &InodeRef) {
        let Ok((shard_index, key)) = self.key_of(id) else {
            return;
        };
        let shard = self.write(shard_index);
        let old = self.set_ref(&shard, key, inode_ref);
        drop(shard);
        if let Ok(Some(old)) = old {
            self.refs().free(old);
        }
    }

    /// Has the descriptor of an inode held until it is closed.
    pub(super) fn hold_inode(&self, id: NodeId, descriptor: &Arc<Descriptor>, holder: &Holder) {
        let Ok((shard_index, key)) = self.key_of(id) else {
            return;
        };
        let mark = || {
            let shard = self.read(shard_index);
            let inode = shard.slab.get(key)?;
            // Another descriptor may have come since the caller asked for this one.
            let is_same = Arc::ptr_eq(shard.held_descriptor(key)?, descriptor);
            is_same.then(|| inode.held.swap(1, Ordering::AcqRel) == 0)
        };
        // Marked first: what is marked is not evicted, and released when it is closed.
        if mark() == Some(true) {
            holder.hold(&[descriptor.as_fd().as_raw_fd()]);
        }
    }

    /// A descriptor that may be held is about to be closed.
    pub(super) fn release_held(&self, descriptor: &Arc<Descriptor>) {
        if let Some(holder) = self.holder() {
            holder.release(&[descriptor.as_fd().as_raw_fd()]);
        }
    }

    /// Whether the guest has files open on the inode.
    pub(super) fn is_open(&self, id: NodeId) -> bool {
        let Ok((shard, key)) = self.key_of(id) else {
            return false;
        };
        let shard = self.read(shard);
        let inode = shard.slab.get(key);
        inode.is_some_and(|inode| inode.open_count.load(Ordering::Relaxed) > 0)
    }
}
