//! The inodes that one guest knows.
//!
//! The table finds an inode by node id, or by identity on a lookup. An inode's `O_PATH` descriptor
//! keeps the file system from reusing its inode number. When descriptors run short, the table
//! evicts those of the least recently used inodes and keeps an [`InodeRef`] to reopen each.
//!
//! Locks: each shard has its own lock. A thread holds at most one shard lock at a time and makes no
//! system call while it holds a write lock.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::{fmt, io};

use gangplank_fuse::NodeId;
use gangplank_service::rate_limited;
use hashbrown::DefaultHashBuilder;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::budget::Descriptor;
use super::errno::stale;
use super::fd_cache::FdCache;
use super::inode::{Inode, KnownSize};
use super::inode_memory::{INODE_BYTES, InodeMemory};
use super::inode_ref::{InodeFingerprint, InodeRef};
use super::inode_shard::{SHARDS, Shard, decode_node_id, encode_node_id, hash_of};
use super::mounts::Identity;
use super::remembered_names::RememberedDirs;
use super::slab::Key;

/// All inodes that one guest knows, except the root.
pub(super) struct InodeTable {
    shards: [RwLock<Shard>; SHARDS],
    hasher: DefaultHashBuilder,
    /// The memory that inodes and remembered directories take.
    memory: Arc<InodeMemory>,
    /// The directories by which inodes without a descriptor are found again.
    dirs: RememberedDirs,
    /// Index of the shard that is scanned for eviction next.
    pub(super) next_shard: AtomicUsize,
    /// Descriptors of closed files, kept for the next open.
    fd_cache: FdCache,
}

impl fmt::Debug for InodeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InodeTable").finish_non_exhaustive()
    }
}

/// How to reach an inode.
pub(super) enum Access {
    /// Through its descriptor.
    Descriptor(Arc<Descriptor>),
    /// By reopening it.
    Ref(InodeRef),
}

/// What the table knows about a node id.
pub(super) struct ResolvedInode {
    /// Mount, inode number and type.
    pub(super) identity: Identity,
    /// How to reach the inode.
    pub(super) access: Access,
}

/// The result of a lookup by identity.
pub(super) enum Found {
    /// The table has this inode; one lookup was added.
    Same(NodeId),
    /// The table has an inode with this identity but no descriptor of it, so the file system may
    /// have reused the inode number.
    NeedsVerification,
    /// The table has no inode with this identity.
    New,
}

/// Whether a lookup found an inode that the guest did not know before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IsNew {
    /// The guest knew the inode.
    No,
    /// The guest did not know the inode.
    Yes,
}

impl InodeTable {
    /// An empty table whose inodes may take `max_bytes` of memory.
    pub(super) fn new(max_bytes: u64) -> Self {
        let memory = InodeMemory::new(max_bytes);
        Self {
            shards: Default::default(),
            hasher: DefaultHashBuilder::default(),
            dirs: RememberedDirs::new(Arc::clone(&memory)),
            memory,
            next_shard: AtomicUsize::new(0),
            fd_cache: FdCache::default(),
        }
    }

    /// Number of inodes.
    pub(super) fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.read(shard).slab.len()).sum()
    }

    /// Descriptors of closed files. Forgetting an inode closes its descriptors here.
    pub(super) fn fd_cache(&self) -> &FdCache {
        &self.fd_cache
    }

    /// The memory that inodes and remembered directories take.
    pub(super) fn memory(&self) -> &InodeMemory {
        &self.memory
    }

    /// The directories by which inodes without a descriptor are found again.
    pub(super) fn remembered_dirs(&self) -> &RememberedDirs {
        &self.dirs
    }

    /// The descriptor of an inode that has one.
    pub(super) fn descriptor_of(&self, identity: Identity) -> Option<Arc<Descriptor>> {
        let (hash, shard_index) = self.locate(identity);
        let shard = self.read(shard_index);
        let (_, inode) = shard.find(hash, identity)?;
        inode.touch();
        inode.descriptor.as_ref().map(Arc::clone)
    }

    /// Finds the inode of a node id.
    ///
    /// # Errors
    /// ESTALE if the guest does not hold the node id.
    pub(super) fn get(&self, id: NodeId) -> io::Result<ResolvedInode> {
        let (shard, key) = decode_node_id(id)?;
        let shard = self.read(shard);
        let inode = shard.slab.get(key).ok_or_else(stale)?;
        inode.touch();
        let access = match (&inode.descriptor, &inode.inode_ref) {
            (Some(descriptor), _) => Access::Descriptor(Arc::clone(descriptor)),
            (None, Some(inode_ref)) => Access::Ref(InodeRef::clone(inode_ref)),
            (None, None) => return Err(stale()),
        };
        Ok(ResolvedInode {
            identity: inode.identity,
            access,
        })
    }

    /// Finds an inode by identity and adds a lookup if the match is certain. The caller sends
    /// `size` to the guest.
    pub(super) fn look_up(&self, identity: Identity, size: u64) -> Found {
        let (hash, shard_index) = self.locate(identity);
        let shard = self.read(shard_index);
        let Some((key, inode)) = shard.find(hash, identity) else {
            return Found::New;
        };
        if inode.descriptor.is_none() {
            return Found::NeedsVerification;
        }
        inode.touch();
        inode.known_size.raise(size);
        inode.lookup_count.fetch_add(1, Ordering::Relaxed);
        Found::Same(encode_node_id(shard_index, key))
    }

    /// Adds a lookup of an inode without a descriptor, if it has the given fingerprint and its
    /// reference survives a rename. The caller sends `size` to the guest.
    pub(super) fn verify(
        &self,
        identity: Identity,
        size: u64,
        fingerprint: &InodeFingerprint,
    ) -> Option<NodeId> {
        let (hash, shard_index) = self.locate(identity);
        let shard = self.read(shard_index);
        let (key, inode) = shard.find(hash, identity)?;
        let same = inode.descriptor.is_some()
            || (inode.inode_ref.as_ref()).is_some_and(|inode_ref| {
                inode_ref.survives_rename() && inode_ref.matches(fingerprint)
            });
        if !same {
            return None;
        }
        inode.known_size.raise(size);
        inode.lookup_count.fetch_add(1, Ordering::Relaxed);
        Some(encode_node_id(shard_index, key))
    }

    /// Adds a lookup of the inode that `descriptor` refers to, and inserts the inode if it is new.
    /// The caller sends `size` to the guest.
    ///
    /// The table calls `fingerprint` only if it has an inode with the same identity and no
    /// descriptor, to tell whether both are the same inode.
    ///
    /// # Errors
    /// Those of `fingerprint`; ENOMEM if the guest's inodes take all the memory that they may;
    /// ENFILE if the table is full.
    pub(super) fn insert(
        &self,
        identity: Identity,
        size: u64,
        descriptor: &Arc<Descriptor>,
        fingerprint: impl Fn() -> io::Result<InodeFingerprint>,
    ) -> io::Result<(NodeId, IsNew)> {
        let mut known = match self.look_up(identity, size) {
            Found::Same(id) => return Ok((id, IsNew::No)),
            Found::NeedsVerification => Some(fingerprint()?),
            Found::New => None,
        };
        loop {
            if let Some(inserted) = self.try_insert(identity, size, descriptor, known.as_ref()) {
                return inserted;
            }
            // Another thread inserted the inode and evicted its descriptor since the lookup.
            known = Some(fingerprint()?);
        }
    }

    /// Inserts the inode or adds a lookup. Returns `None` if it needs a fingerprint and has none.
    fn try_insert(
        &self,
        identity: Identity,
        size: u64,
        descriptor: &Arc<Descriptor>,
        fingerprint: Option<&InodeFingerprint>,
    ) -> Option<io::Result<(NodeId, IsNew)>> {
        let (hash, shard_index) = self.locate(identity);
        let mut guard = self.write(shard_index);
        let shard = &mut *guard;
        if let Some((key, inode)) = shard.find(hash, identity) {
            let same = inode.descriptor.is_some() || {
                let fingerprint = fingerprint?;
                let inode_ref = inode.inode_ref.as_deref();
                inode_ref.is_some_and(|inode_ref| inode_ref.matches(fingerprint))
            };
            if same {
                inode.touch();
                inode.known_size.raise(size);
                inode.lookup_count.fetch_add(1, Ordering::Relaxed);
                if let Some(inode) = shard
                    .slab
                    .get_mut(key)
                    .filter(|inode| inode.descriptor.is_none())
                {
                    inode.descriptor = Some(Arc::clone(descriptor));
                }
                return Some(Ok((encode_node_id(shard_index, key), IsNew::No)));
            }
            // The old inode no longer exists and its number was reused. Its node id stays and gives
            // ESTALE.
            shard.unindex(hash, key);
        }
        if let Err(error) = self.memory.take_inode() {
            return Some(Err(error));
        }
        let inserted = shard.slab.insert(Inode {
            identity,
            used: AtomicBool::new(true),
            open_count: AtomicU32::new(0),
            ctime: AtomicI64::new(0),
            ctime_noted: AtomicU16::new(0),
            known_size: KnownSize::new(size),
            lookup_count: AtomicU64::new(1),
            descriptor: Some(Arc::clone(descriptor)),
            inode_ref: None,
        });
        let key = match inserted {
            Ok(key) => key,
            Err(full) => {
                self.memory.give_back(INODE_BYTES);
                return Some(Err(full.into()));
            }
        };
        let (slab, hasher) = (&shard.slab, &self.hasher);
        shard.by_identity.insert_unique(hash, key.index(), |index| {
            slab.at(*index)
                .map_or(0, |(_, inode)| hash_of(hasher, inode.identity))
        });
        Some(Ok((encode_node_id(shard_index, key), IsNew::Yes)))
    }

    /// Adds a lookup of an inode that the guest named by node id.
    ///
    /// # Errors
    /// ESTALE if the guest does not hold the node id.
    pub(super) fn add_lookup(&self, id: NodeId) -> io::Result<()> {
        let (shard, key) = decode_node_id(id)?;
        let shard = self.read(shard);
        let inode = shard.slab.get(key).ok_or_else(stale)?;
        inode.lookup_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Subtracts lookups. At zero the inode is removed and its descriptor closed.
    pub(super) fn forget(&self, id: NodeId, count: u64) {
        let Ok((shard_index, key)) = decode_node_id(id) else {
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
        if emptied && let Some(inode) = self.remove_unused(shard_index, key) {
            drop(inode);
            self.fd_cache.remove(id);
        }
    }

    /// Removes an inode unless another thread has looked it up in the meantime.
    fn remove_unused(&self, shard_index: usize, key: Key) -> Option<Inode> {
        let mut guard = self.write(shard_index);
        let shard = &mut *guard;
        let inode = shard.slab.get(key)?;
        if inode.lookup_count.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let hash = hash_of(&self.hasher, inode.identity);
        shard.unindex(hash, key);
        let inode = shard.slab.remove(key)?;
        shard.shrink(&self.hasher);
        self.memory.give_back(inode.bytes());
        // The caller drops the inode, so its descriptor is closed without the lock.
        Some(inode)
    }

    /// Counts one open file more or one fewer and returns the new number.
    pub(super) fn count_open(&self, id: NodeId, change: OpenChange) -> u32 {
        let Ok((shard, key)) = decode_node_id(id) else {
            return 0;
        };
        let shard = self.read(shard);
        let Some(inode) = shard.slab.get(key) else {
            return 0;
        };
        let change = |open_count: u32| match change {
            OpenChange::Opened => open_count.saturating_add(1),
            OpenChange::Closed => open_count.saturating_sub(1),
        };
        let before =
            inode
                .open_count
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open_count| {
                    Some(change(open_count))
                });
        change(before.unwrap_or(0))
    }

    /// Records the inode's ctime at an open; 0 means it is not reliable. If the same ctime was
    /// already recorded, returns how many seconds ago.
    pub(super) fn note_ctime(&self, id: NodeId, ctime: i64, now: u16) -> Option<u16> {
        let (shard, key) = decode_node_id(id).ok()?;
        let shard = self.read(shard);
        let inode = shard.slab.get(key)?;
        if inode.ctime.load(Ordering::Acquire) == ctime {
            let known = now.wrapping_sub(inode.ctime_noted.load(Ordering::Relaxed));
            return (ctime != 0).then_some(known);
        }
        // In this order: a thread that sees the new ctime also sees its time of recording.
        inode.ctime_noted.store(now, Ordering::Relaxed);
        inode.ctime.store(ctime, Ordering::Release);
        None
    }

    /// Calls `visit` with the size that the guest knows; `None` if the guest does not hold the
    /// inode.
    pub(super) fn with_known_size<T>(
        &self,
        id: NodeId,
        visit: impl FnOnce(&KnownSize) -> T,
    ) -> Option<T> {
        let (shard, key) = decode_node_id(id).ok()?;
        let shard = self.read(shard);
        Some(visit(&shard.slab.get(key)?.known_size))
    }

    /// Stores a descriptor for an inode that has none, and returns the inode's descriptor. If
    /// another thread was faster, this is the other thread's.
    pub(super) fn set_descriptor(
        &self,
        id: NodeId,
        descriptor: Arc<Descriptor>,
    ) -> io::Result<Arc<Descriptor>> {
        let (shard_index, key) = decode_node_id(id)?;
        let mut shard = self.write(shard_index);
        let inode = shard.slab.get_mut(key).ok_or_else(stale)?;
        if let Some(present) = &inode.descriptor {
            return Ok(Arc::clone(present));
        }
        inode.descriptor = Some(Arc::clone(&descriptor));
        Ok(descriptor)
    }

    /// Removes all inodes.
    pub(super) fn clear(&self) {
        for shard_index in 0..SHARDS {
            // Dropped without the lock, because close may block.
            let old = std::mem::take(&mut *self.write(shard_index));
            let bytes = old.slab.iter_from(0).map(|(_, inode)| inode.bytes());
            self.memory.give_back(bytes.sum());
            drop(old);
        }
        self.fd_cache.clear();
    }

    fn locate(&self, identity: Identity) -> (u64, usize) {
        let hash = hash_of(&self.hasher, identity);
        // hashbrown uses the upper seven and the lower bits inside a shard; the shard takes bits in
        // between. The remainder is below `SHARDS`, which is 16.
        (hash, usize::try_from(hash >> 48).unwrap_or(0) % SHARDS)
    }

    /// Locks a shard for reading.
    pub(super) fn read(&self, shard_index: usize) -> RwLockReadGuard<'_, Shard> {
        self.shards[shard_index % SHARDS].read()
    }

    /// Locks a shard for writing.
    pub(super) fn write(&self, shard_index: usize) -> RwLockWriteGuard<'_, Shard> {
        self.shards[shard_index % SHARDS].write()
    }
}

/// A change of an inode's number of open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenChange {
    /// One more.
    Opened,
    /// One fewer.
    Closed,
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
        assert!(InodeTable::new(0).get(NodeId::ROOT).is_err());
    }
}
