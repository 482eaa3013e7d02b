//! The inode table of a guest that leaves for another daemon, or arrives from one.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::NodeId;

use super::budget::Descriptor;
use super::file_type::FileType;
use super::inode_memory::INODE_BYTES;
use super::inode_shard::{SHARDS, encode_node_id};
use super::inode_table::InodeTable;
use super::mounts::{Identity, MountIndex};
use crate::state::slab::Full;

/// An inode that the guest knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct KnownInode {
    pub(super) id: NodeId,
    /// Look-ups that the guest has not forgotten.
    pub(super) lookups: u64,
    pub(super) identity: Identity,
}

/// What an arriving guest's inode is here.
pub(super) struct FoundInode {
    pub(super) identity: Identity,
    /// The size that the guest may know.
    pub(super) size: u64,
    pub(super) descriptor: Arc<Descriptor>,
}

impl InodeTable {
    /// All inodes, by rising id.
    pub(super) fn known(&self) -> Vec<KnownInode> {
        let mut known = Vec::with_capacity(self.len());
        for shard_index in 0..SHARDS {
            let shard = self.read(shard_index);
            known.extend(shard.slab.iter_from(0).map(|(key, inode)| KnownInode {
                id: self.id_of(shard_index, key, inode),
                lookups: inode.lookup_count.load(Ordering::Relaxed),
                identity: inode.identity(),
            }));
        }
        known.sort_by_key(|inode| inode.id.get());
        known
    }

    /// A number above all node ids that the guest has had.
    pub(super) fn next_id(&self) -> u64 {
        let next = |shard: usize| self.read(shard).slab.next_raw() * SHARDS as u64;
        let own = (0..SHARDS).map(next).max().unwrap_or_default();
        own.max(self.foreign_ids.limit())
    }

    /// Prepares the empty table for `count` inodes with ids below `limit`.
    ///
    /// # Errors
    /// There is no room for as many, or no id above `limit`.
    pub(super) fn begin_arrival(&self, limit: u64, count: usize) -> Result<(), Full> {
        if !self.foreign_ids.begin(count) {
            return Err(Full);
        }
        for shard_index in 0..SHARDS {
            let mut shard = self.write(shard_index);
            shard.slab.begin_above(limit.div_ceil(SHARDS as u64))?;
        }
        self.foreign_ids.set_limit(limit);
        Ok(())
    }

    /// Adds an inode of an arriving guest by its foreign id. Without `found`, each access gives
    /// ESTALE.
    ///
    /// # Errors
    /// ENOMEM if the guest's inodes take all the memory that they may; ENFILE if the table is full.
    pub(super) fn arrive(
        &self,
        id: u64,
        lookups: u64,
        found: Option<FoundInode>,
    ) -> io::Result<()> {
        self.memory().take_inode()?;
        let nothing = Identity {
            mount: MountIndex::ROOT,
            ino: 0,
            file_type: FileType::Regular,
        };
        let (identity, size) = found
            .as_ref()
            .map_or((nothing, 0), |found| (found.identity, found.size));
        let (hash, by_hash) = self.locate(identity);
        let shard_index = match &found {
            Some(_) => by_hash,
            // The remainder is below `SHARDS`, which is 16.
            None => usize::try_from(id % SHARDS as u64).unwrap_or(0),
        };
        let descriptor = found.map(|found| found.descriptor);
        let number = descriptor
            .as_ref()
            .map(|descriptor| descriptor.as_fd().as_raw_fd());
        let mut shard = self.write(shard_index);
        // Two files of the source may be one here.
        let is_searchable = number.is_some() && shard.find(hash, identity).is_none();
        let inserted = shard.slab.insert(descriptor, |inode, key| {
            inode.fill(identity, size);
            inode.lookup_count.store(lookups, Ordering::Relaxed);
            inode
                .replaced
                .store(u8::from(!is_searchable), Ordering::Relaxed);
            let own = encode_node_id(shard_index, key);
            let place = self.foreign_ids.add(id, own.get()).unwrap_or(0);
            inode.foreign_id.store(place, Ordering::Relaxed);
        });
        let key = inserted.map_err(|full| {
            self.memory().give_back(INODE_BYTES);
            io::Error::from(full)
        })?;
        shard.note_descriptor(key, number);
        if is_searchable {
            shard.index(hash, key);
        }
        Ok(())
    }
}
