//! The inodes that one guest knows.
//!
//! The table finds an inode by node id, or by identity on a lookup. An inode's `O_PATH` descriptor
//! keeps the file system from reusing its inode number. When descriptors run short, the table
//! evicts those of the least recently used inodes and keeps an [`InodeRef`] to reopen each.
//!
//! Locks: each shard has its own lock. A thread holds at most one shard lock at a time and makes no
//! system call while it holds a write lock.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fmt, io};

use foldhash::fast::FixedState;
use gangplank_fuse::NodeId;
use parking_lot::{RwLock, RwLockReadGuard};

use super::budget::{Budget, Descriptor, Permit, PermitFor};
use super::errno::stale;
use super::fd_cache::FdCache;
use super::inode::KnownSize;
use super::inode_memory::{INODE_BYTES, InodeMemory};
use super::inode_ref::{InodeFingerprint, InodeRef};
use super::inode_refs::InodeRefs;
use super::inode_shard::{ChangingShard, SHARDS, Shard, decode_node_id, encode_node_id, hash_of};
use super::mounts::{Identity, Mounts};
use super::remembered_names::RememberedDirs;
use crate::holder::client::Holder;
use crate::state::arena::Arena;
use crate::state::foreign_ids::ForeignIds;
use crate::state::heap::Heap;
use crate::state::inodes::InodeRecord;
use crate::state::slab::Key;
use crate::sys::process;

/// All inodes that one guest knows, except the root.
pub(super) struct InodeTable {
    shards: [RwLock<Shard>; SHARDS],
    hasher: FixedState,
    budget: Arc<Budget>,
    /// The memory that inodes and remembered directories take.
    memory: Arc<InodeMemory>,
    /// How inodes without a descriptor are found again.
    refs: InodeRefs,
    /// Index of the shard that is scanned for eviction next.
    pub(super) next_shard: AtomicUsize,
    /// Descriptors of closed files, kept for the next open.
    fd_cache: FdCache,
    /// The node ids that another daemon has chosen.
    pub(super) foreign_ids: ForeignIds,
    holder: Option<Arc<Holder>>,
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
    /// The table that is in an arena. Its inodes may take `max_bytes` of memory.
    pub(super) fn new(
        arena: &Arc<Arena>,
        max_bytes: u64,
        budget: &Arc<Budget>,
        mounts: &Arc<Mounts>,
    ) -> Self {
        let shards = std::array::from_fn(|shard| Shard::new(arena, shard));
        let of_shard = |shard: &Shard| {
            let extra = shard.extra_bytes().load(Ordering::Relaxed);
            (shard.slab.len() as u64 * INODE_BYTES).saturating_add(extra)
        };
        let heap = Heap::new(arena);
        let of_dirs = heap.record().directory_bytes.load(Ordering::Relaxed);
        let used = shards.iter().map(of_shard);
        let used = used.fold(of_dirs, u64::saturating_add);
        let memory = InodeMemory::with_used(used, max_bytes);
        let seed = arena.header().hash_seed.load(Ordering::Relaxed);
        Self {
            shards: shards.map(RwLock::new),
            hasher: FixedState::with_seed(seed),
            budget: Arc::clone(budget),
            refs: InodeRefs::new(heap, Arc::clone(mounts), Arc::clone(&memory)),
            memory,
            next_shard: AtomicUsize::new(0),
            fd_cache: FdCache::default(),
            foreign_ids: ForeignIds::new(arena.foreign_nodes()),
            holder: arena.holder().cloned(),
        }
    }

    /// What holds descriptors outside of the daemon.
    pub(super) fn holder(&self) -> Option<&Holder> {
        self.holder.as_deref()
    }

    /// Number of inodes with a descriptor.
    pub(super) fn descriptors(&self) -> u64 {
        let of_shards = (0..SHARDS).map(|shard| self.read(shard).descriptors());
        of_shards.fold(0, u64::saturating_add)
    }

    /// Number of inodes.
    pub(super) fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.read(shard).slab.len()).sum()
    }

    /// The guest's descriptors, counted.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Descriptors of closed files. Forgetting an inode closes its descriptors here.
    pub(super) fn fd_cache(&self) -> &FdCache {
        &self.fd_cache
    }

    /// The memory that inodes and remembered directories take.
    pub(super) fn memory(&self) -> &InodeMemory {
        &self.memory
    }

    /// How inodes without a descriptor are found again.
    pub(super) fn refs(&self) -> &InodeRefs {
        &self.refs
    }

    /// The directories by which inodes without a descriptor are found again.
    pub(super) fn remembered_dirs(&self) -> &RememberedDirs {
        self.refs.dirs()
    }

    /// The descriptor of an inode that has one.
    pub(super) fn descriptor_of(&self, identity: Identity) -> Option<Arc<Descriptor>> {
        let (hash, shard_index) = self.locate(identity);
        let shard = self.read(shard_index);
        let (key, inode) = shard.find(hash, identity)?;
        inode.touch();
        if let Some(held) = shard.held_descriptor(key) {
            return Some(Arc::clone(held));
        }
        let is_noted = inode.has_descriptor();
        drop(shard);
        is_noted.then(|| self.adopt(shard_index, key).ok())?
    }

    /// Takes over a descriptor that an earlier worker opened for an inode.
    ///
    /// # Errors
    /// ESTALE if the inode has no descriptor.
    pub(super) fn adopt(&self, shard_index: usize, key: Key) -> io::Result<Arc<Descriptor>> {
        let mut shard = self.write(shard_index);
        if let Some(held) = shard.held_descriptor(key) {
            return Ok(Arc::clone(held));
        }
        let inode = shard.slab.get(key).ok_or_else(stale)?;
        let number = inode.descriptor.get().ok_or_else(stale)?;
        let opened = process::adopt(number)?;
        // The budget counts it since this worker began.
        let permit = Permit::of_counted(&self.budget, PermitFor::Inode);
        let descriptor = Arc::new(Descriptor::new(opened, permit));
        shard.hold_descriptor(key, &descriptor);
        Ok(descriptor)
    }

    /// Finds the inode of a node id.
    ///
    /// # Errors
    /// ESTALE if the guest does not hold the node id.
    pub(super) fn get(&self, id: NodeId) -> io::Result<ResolvedInode> {
        let (shard_index, key) = self.key_of(id)?;
        // Another thread may evict the descriptor before this one takes it over.
        let resolved = self.resolve(shard_index, key);
        resolved.or_else(|_| self.resolve(shard_index, key))
    }

    fn resolve(&self, shard_index: usize, key: Key) -> io::Result<ResolvedInode> {
        let shard = self.read(shard_index);
        let inode = shard.slab.get(key).ok_or_else(stale)?;
        inode.touch();
        let identity = inode.identity();
        let access = if let Some(descriptor) = shard.held_descriptor(key) {
            Access::Descriptor(Arc::clone(descriptor))
        } else if inode.has_descriptor() {
            drop(shard);
            Access::Descriptor(self.adopt(shard_index, key)?)
        } else {
            Access::Ref(self.refs.load(inode.inode_ref().ok_or_else(stale)?))
        };
        Ok(ResolvedInode { identity, access })
    }

    /// Finds an inode by identity and adds a lookup if the match is certain. The caller sends
    /// `size` to the guest.
    pub(super) fn look_up(&self, identity: Identity, size: u64) -> Found {
        let (hash, shard_index) = self.locate(identity);
        let shard = self.read(shard_index);
        let Some((key, inode)) = shard.find(hash, identity) else {
            return Found::New;
        };
        if !inode.has_descriptor() {
            return Found::NeedsVerification;
        }
        inode.touch();
        inode.known_size().raise(size);
        inode.lookup_count.fetch_add(1, Ordering::Relaxed);
        Found::Same(self.id_of(shard_index, key, inode))
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
        let same = inode.has_descriptor()
            || inode.inode_ref().is_some_and(|inode_ref| {
                self.refs.survives_rename(inode_ref) && self.refs.matches(inode_ref, fingerprint)
            });
        if !same {
            return None;
        }
        inode.known_size().raise(size);
        inode.lookup_count.fetch_add(1, Ordering::Relaxed);
        Some(self.id_of(shard_index, key, inode))
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
        let mut shard = self.write(shard_index);
        if let Some((key, inode)) = shard.find(hash, identity) {
            let same = inode.has_descriptor() || {
                let fingerprint = fingerprint?;
                let inode_ref = inode.inode_ref();
                inode_ref.is_some_and(|inode_ref| self.refs.matches(inode_ref, fingerprint))
            };
            if same {
                inode.touch();
                inode.known_size().raise(size);
                inode.lookup_count.fetch_add(1, Ordering::Relaxed);
                let id = self.id_of(shard_index, key, inode);
                if !inode.has_descriptor() {
                    shard.hold_descriptor(key, descriptor);
                }
                return Some(Ok((id, IsNew::No)));
            }
            // The old inode no longer exists and its number was reused. Its node id stays and gives
            // ESTALE.
            shard.unindex(hash, key);
        }
        if let Err(error) = self.memory.take_inode() {
            return Some(Err(error));
        }
        let inserted = shard.slab.insert(Arc::clone(descriptor), |inode, _| {
            inode.fill(identity, size);
        });
        let key = match inserted {
            Ok(key) => key,
            Err(full) => {
                self.memory.give_back(INODE_BYTES);
                return Some(Err(full.into()));
            }
        };
        let number = descriptor.as_fd().as_raw_fd();
        shard.note_descriptor(key, Some(number));
        shard.index(hash, key);
        Some(Ok((encode_node_id(shard_index, key), IsNew::Yes)))
    }

    /// Adds a lookup of an inode that the guest named by node id.
    ///
    /// # Errors
    /// ESTALE if the guest does not hold the node id.
    pub(super) fn add_lookup(&self, id: NodeId) -> io::Result<()> {
        let (shard, key) = self.key_of(id)?;
        let shard = self.read(shard);
        let inode = shard.slab.get(key).ok_or_else(stale)?;
        inode.lookup_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Counts one open file more or one fewer and returns the new number.
    pub(super) fn count_open(&self, id: NodeId, change: OpenChange) -> u32 {
        let Ok((shard, key)) = self.key_of(id) else {
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
        let (shard, key) = self.key_of(id).ok()?;
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
        visit: impl FnOnce(&KnownSize<'_>) -> T,
    ) -> Option<T> {
        let (shard, key) = self.key_of(id).ok()?;
        let shard = self.read(shard);
        Some(visit(&shard.slab.get(key)?.known_size()))
    }

    /// Stores a descriptor for an inode that has none, and returns the inode's descriptor. If
    /// another thread was faster, this is the other thread's.
    pub(super) fn set_descriptor(
        &self,
        id: NodeId,
        descriptor: Arc<Descriptor>,
    ) -> io::Result<Arc<Descriptor>> {
        let (shard_index, key) = self.key_of(id)?;
        let mut shard = self.write(shard_index);
        if let Some(present) = shard.held_descriptor(key) {
            return Ok(Arc::clone(present));
        }
        if shard.slab.get(key).ok_or_else(stale)?.has_descriptor() {
            drop(shard);
            return self.adopt(shard_index, key);
        }
        shard.hold_descriptor(key, &descriptor);
        Ok(descriptor)
    }

    /// Stores another descriptor for an inode in place of `old`.
    ///
    /// # Errors
    /// ESTALE if the guest has forgotten the inode, it has a third descriptor by now, or what holds
    /// the daemon's descriptors has the old one.
    pub(super) fn replace_descriptor(
        &self,
        id: NodeId,
        old: &Arc<Descriptor>,
        new: &Arc<Descriptor>,
    ) -> io::Result<()> {
        let (shard_index, key) = self.key_of(id)?;
        let mut shard = self.write(shard_index);
        let has_old = shard
            .held_descriptor(key)
            .is_some_and(|held| Arc::ptr_eq(held, old));
        let is_held_outside = |inode: &InodeRecord| inode.held.load(Ordering::Relaxed) != 0;
        if !has_old || shard.slab.get(key).is_none_or(is_held_outside) {
            return Err(stale());
        }
        // The caller's `old` closes the former descriptor, without the lock.
        shard.hold_descriptor(key, new);
        Ok(())
    }

    /// The shard index and key that a node id of the guest stands for.
    ///
    /// # Errors
    /// ESTALE if it stands for none.
    pub(super) fn key_of(&self, id: NodeId) -> io::Result<(usize, Key)> {
        let own = self.foreign_ids.own(id.get()).ok_or_else(stale)?;
        decode_node_id(NodeId::new(own))
    }

    /// The node id by which the guest knows an inode.
    pub(super) fn id_of(&self, shard_index: usize, key: Key, inode: &InodeRecord) -> NodeId {
        let foreign = self
            .foreign_ids
            .id_at(inode.foreign_id.load(Ordering::Relaxed));
        foreign.map_or_else(|| encode_node_id(shard_index, key), NodeId::new)
    }

    pub(super) fn locate(&self, identity: Identity) -> (u64, usize) {
        let hash = hash_of(&self.hasher, identity);
        // The index uses the lower bits first. The remainder is below `SHARDS`, which is 16.
        (hash, usize::try_from(hash >> 48).unwrap_or(0) % SHARDS)
    }

    /// Locks a shard for reading.
    pub(super) fn read(&self, shard_index: usize) -> RwLockReadGuard<'_, Shard> {
        self.shards[shard_index % SHARDS].read()
    }

    /// Locks a shard for changes.
    pub(super) fn write(&self, shard_index: usize) -> ChangingShard<'_> {
        ChangingShard::new(self.shards[shard_index % SHARDS].write())
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
