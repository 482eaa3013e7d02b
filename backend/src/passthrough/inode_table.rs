//! The inodes a guest knows, and how each is held.
//!
//! An inode is found by node id, or by identity when a look-up comes upon it again. It is held by an `O_PATH`
//! descriptor, which keeps its inode number from being used for another one. When descriptors get scarce some are
//! closed, the least used first, and how to find the inode again ([`InodeRef`]) is kept in their place.
//!
//! Locks: the table is split into shards, each under a lock of its own. Nobody takes two of them at once, and no
//! system call is made while one is held for writing.

use std::fmt;
use std::io;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering,
};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use gangplank_fuse::NodeId;
use hashbrown::DefaultHashBuilder;

use super::budget::{Account, Descriptor};
use super::fd_cache::FdCache;
pub(super) use super::inode::FileType;
use super::inode::{Inode, KnownSize, Shard, hash_of};
use super::mounts::Identity;
use super::reopen::{InodeFingerprint, InodeRef};
use super::slab::{Full, KEY_BITS, Key};
use crate::rate_limited;

/// Number of shards: what the bits of a node id above a [`Key`] can tell.
pub(super) const SHARDS: usize = 1 << (64 - KEY_BITS);

/// Inodes that a shard takes: 16 million in all, some two gigabytes. A guest that never forgets gets no further.
const SHARD_CAPACITY: usize = 1 << 20;

/// All inodes that one guest knows, but the root.
pub(super) struct InodeTable {
    shards: [RwLock<Shard>; SHARDS],
    hasher: DefaultHashBuilder,
    /// What the guest holds that cannot be taken from it.
    account: Arc<Account>,
    /// Descriptors that the table holds.
    descriptors: AtomicU64,
    /// The shard that gives up descriptors next.
    next_shard: AtomicUsize,
    /// Files of these inodes that the guest has closed.
    fd_cache: FdCache,
}

impl fmt::Debug for InodeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InodeTable")
            .field("descriptors", &self.descriptors)
            .finish_non_exhaustive()
    }
}

/// How an inode can be reached.
pub(super) enum Access {
    /// By this descriptor.
    Descriptor(Arc<Descriptor>),
    /// By finding it again.
    Ref(InodeRef),
}

/// What the table knows of a node id.
pub(super) struct ResolvedInode {
    /// What it is.
    pub(super) file_type: FileType,
    /// Which it is.
    pub(super) identity: Identity,
    /// How to reach it.
    pub(super) access: Access,
}

/// What a look-up by identity comes upon.
pub(super) enum Found {
    /// The same inode, one look-up added.
    Same(NodeId),
    /// An inode with the same number, which may be gone since: no descriptor holds it.
    NeedsVerification,
    /// None.
    New,
}

/// Whether a look-up came upon an inode that the guest had already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IsNew {
    /// It did.
    No,
    /// It did not.
    Yes,
}

/// An inode that might give up its descriptor.
pub(super) struct EvictionCandidate {
    id: NodeId,
    /// What it is.
    pub(super) file_type: FileType,
    /// What it would give up.
    pub(super) descriptor: Arc<Descriptor>,
    /// Which it is.
    pub(super) identity: Identity,
    /// Whether it is known already how to find it again, whatever happens meanwhile.
    pub(super) has_stable_ref: bool,
}

impl Default for InodeTable {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            hasher: DefaultHashBuilder::default(),
            account: Arc::default(),
            descriptors: AtomicU64::new(0),
            next_shard: AtomicUsize::new(0),
            fd_cache: FdCache::default(),
        }
    }
}

impl InodeTable {
    /// Number of inodes.
    pub(super) fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.read(shard).slab.len()).sum()
    }

    /// What the guest holds that cannot be taken from it: inodes here, and open files.
    pub(super) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Files of these inodes that the guest has closed. They go with their inodes.
    pub(super) fn fd_cache(&self) -> &FdCache {
        &self.fd_cache
    }

    /// Descriptors that the table holds.
    pub(super) fn descriptors(&self) -> u64 {
        self.descriptors.load(Ordering::Relaxed)
    }

    /// The inode of a node id.
    ///
    /// # Errors
    /// ESTALE for a node id that the guest does not have.
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
            file_type: inode.file_type,
            identity: inode.identity,
            access,
        })
    }

    /// Looks for an inode and adds a look-up where it is certain to be the one. The guest is told
    /// its `size`.
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
        inode.known_size.set(size);
        inode.lookup_count.fetch_add(1, Ordering::Relaxed);
        Found::Same(encode_node_id(shard_index, key))
    }

    /// Adds a look-up of an inode that no descriptor holds, if the fingerprint is of it and it can be found again wherever
    /// the name has gone. The guest is told its `size`.
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
        inode.known_size.set(size);
        inode.lookup_count.fetch_add(1, Ordering::Relaxed);
        Some(encode_node_id(shard_index, key))
    }

    /// Adds a look-up of the inode that `descriptor` stands for; makes it known if need be. The
    /// guest is told its `size`.
    ///
    /// `fingerprint` is asked for only where an inode of the same number is known that no descriptor holds, to tell whether
    /// it is the same one. Returned with the node id is whether it was known.
    ///
    /// # Errors
    /// ENFILE where the table is full.
    pub(super) fn insert(
        &self,
        identity: Identity,
        file_type: FileType,
        size: u64,
        descriptor: &Arc<Descriptor>,
        fingerprint: impl Fn() -> InodeFingerprint,
    ) -> io::Result<(NodeId, IsNew)> {
        let mut known = match self.look_up(identity, size) {
            Found::Same(id) => return Ok((id, IsNew::No)),
            Found::NeedsVerification => Some(fingerprint()),
            Found::New => None,
        };
        loop {
            if let Some(inserted) =
                self.try_insert(identity, file_type, size, descriptor, known.as_ref())
            {
                return inserted;
            }
            // It came, and gave its descriptor up, since it was looked for.
            known = Some(fingerprint());
        }
    }

    /// Inserts, or counts a look-up; `None` where fingerprint is needed that was not asked for yet.
    fn try_insert(
        &self,
        identity: Identity,
        file_type: FileType,
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
                inode.known_size.set(size);
                inode.lookup_count.fetch_add(1, Ordering::Relaxed);
                if let Some(inode) = shard
                    .slab
                    .get_mut(key)
                    .filter(|inode| inode.descriptor.is_none())
                {
                    inode.descriptor = Some(Arc::clone(descriptor));
                    self.descriptors.fetch_add(1, Ordering::Relaxed);
                }
                return Some(Ok((encode_node_id(shard_index, key), IsNew::No)));
            }
            // The old one is gone, and its number used again. Its node id stays, and leads to ESTALE.
            shard.unindex(hash, key);
        }
        if shard.slab.len() >= SHARD_CAPACITY {
            rate_limited!(error, "a guest knows 16 million files and gets no more");
            return Some(Err(Full.into()));
        }
        let inserted = shard.slab.insert(Inode {
            identity,
            file_type,
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
            Err(full) => return Some(Err(full.into())),
        };
        self.descriptors.fetch_add(1, Ordering::Relaxed);
        let (slab, hasher) = (&shard.slab, &self.hasher);
        shard.by_identity.insert_unique(hash, key.index(), |index| {
            slab.at(*index)
                .map_or(0, |(_, inode)| hash_of(hasher, inode.identity))
        });
        Some(Ok((encode_node_id(shard_index, key), IsNew::Yes)))
    }

    /// Adds a look-up of an inode that the guest has named by its node id.
    ///
    /// # Errors
    /// ESTALE for a node id that the guest does not have.
    pub(super) fn add_lookup(&self, id: NodeId) -> io::Result<()> {
        let (shard, key) = decode_node_id(id)?;
        let shard = self.read(shard);
        let inode = shard.slab.get(key).ok_or_else(stale)?;
        inode.lookup_count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Undoes look-ups; at none the inode is forgotten, and what held it is let go.
    pub(super) fn forget(&self, id: NodeId, count: u64) {
        let Ok((shard_index, key)) = decode_node_id(id) else {
            rate_limited!(
                warn,
                "a guest forgets node {:#x}, which it cannot know",
                id.get()
            );
            return;
        };
        let emptied = {
            let shard = self.read(shard_index);
            let Some(inode) = shard.slab.get(key) else {
                rate_limited!(
                    warn,
                    "a guest forgets node {:#x}, which it does not have",
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

    /// Takes an inode out unless it was looked up again in between.
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
        if inode.descriptor.is_some() {
            self.descriptors.fetch_sub(1, Ordering::Relaxed);
        }
        shard.shrink(&self.hasher);
        // Returned, so that the descriptor is closed without the lock.
        Some(inode)
    }

    /// Notes that the guest has one open file more of an inode, or one fewer, and returns how many it has now.
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

    /// Notes when an inode that the guest opens was last changed, 0 where that is not to be relied on. For how many seconds
    /// just that was known already, if it was.
    pub(super) fn note_ctime(&self, id: NodeId, ctime: i64, now: u16) -> Option<u16> {
        let (shard, key) = decode_node_id(id).ok()?;
        let shard = self.read(shard);
        let inode = shard.slab.get(key)?;
        if inode.ctime.load(Ordering::Acquire) == ctime {
            let known = now.wrapping_sub(inode.ctime_noted.load(Ordering::Relaxed));
            return (ctime != 0).then_some(known);
        }
        // In this order: whoever sees the one sees the other.
        inode.ctime_noted.store(now, Ordering::Relaxed);
        inode.ctime.store(ctime, Ordering::Release);
        None
    }

    /// Looks at the size of an inode as the guest knows it, or changes it; `None` for an inode that
    /// the guest does not have.
    pub(super) fn with_known_size<T>(
        &self,
        id: NodeId,
        visit: impl FnOnce(&KnownSize) -> T,
    ) -> Option<T> {
        let (shard, key) = decode_node_id(id).ok()?;
        let shard = self.read(shard);
        Some(visit(&shard.slab.get(key)?.known_size))
    }

    /// Gives an inode that no descriptor held one again, and returns the one that it has now.
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
        self.descriptors.fetch_add(1, Ordering::Relaxed);
        Ok(descriptor)
    }

    /// Up to `count` inodes of one shard that were not used lately; the next call looks at the next shard.
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
            // There is no way to find it again, as far as was found out.
            if descriptor.is_pinned() {
                continue;
            }
            if inode.used.swap(false, Ordering::Relaxed) {
                continue;
            }
            found.push(EvictionCandidate {
                id: encode_node_id(shard_index, key),
                file_type: inode.file_type,
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

    /// Takes the descriptor from an inode, which has to be found again from now on. Returns false where the inode was
    /// forgotten in between, or cannot be found again.
    pub(super) fn evict(&self, candidate: EvictionCandidate, inode_ref: Option<InodeRef>) -> bool {
        let Ok((shard_index, key)) = decode_node_id(candidate.id) else {
            return false;
        };
        let taken = {
            let mut shard = self.write(shard_index);
            let Some(inode) = shard.slab.get_mut(key) else {
                return false;
            };
            if let Some(inode_ref) = inode_ref {
                inode.inode_ref = Some(Box::new(inode_ref));
            }
            if inode.inode_ref.is_none() {
                return false;
            }
            inode.descriptor.take()
        };
        if taken.is_some() {
            self.descriptors.fetch_sub(1, Ordering::Relaxed);
        }
        taken.is_some()
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        for shard_index in 0..SHARDS {
            let old = std::mem::take(&mut *self.write(shard_index));
            let held = old
                .slab
                .iter_from(0)
                .filter(|(_, inode)| inode.descriptor.is_some())
                .count();
            self.descriptors.fetch_sub(held as u64, Ordering::Relaxed);
        }
        self.fd_cache.clear();
    }

    fn locate(&self, identity: Identity) -> (u64, usize) {
        let hash = hash_of(&self.hasher, identity);
        // The table inside a shard uses the upper seven and the lower bits, so the shard takes some between.
        // Less than `SHARDS`, which is 16.
        (hash, usize::try_from(hash >> 48).unwrap_or(0) % SHARDS)
    }

    // A table is right whenever its lock is free, also after a panic: every change is made in one piece.
    fn read(&self, shard_index: usize) -> RwLockReadGuard<'_, Shard> {
        self.shards[shard_index % SHARDS]
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, shard_index: usize) -> RwLockWriteGuard<'_, Shard> {
        self.shards[shard_index % SHARDS]
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What happens to an inode's count of open files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenChange {
    /// One more.
    Opened,
    /// One fewer.
    Closed,
}

/// Shard and key of a node id. Keys are large, so 0 and the root's 1 are no inode of the table.
fn decode_node_id(id: NodeId) -> io::Result<(usize, Key)> {
    let raw = id.get();
    let key = Key::from_raw(raw >> SHARDS.trailing_zeros()).ok_or_else(stale)?;
    // Less than `SHARDS`, which is 16.
    Ok((usize::try_from(raw % SHARDS as u64).unwrap_or(0), key))
}

fn encode_node_id(shard: usize, key: Key) -> NodeId {
    NodeId::new(key.raw() << SHARDS.trailing_zeros() | shard as u64)
}

/// What a guest gets for an inode that it does not have, or that is no more.
pub(super) fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
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
        assert!(InodeTable::default().get(NodeId::ROOT).is_err());
    }
}
