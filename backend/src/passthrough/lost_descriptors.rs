//! Going on with a state whose descriptors are lost, because all processes of the daemon have died
//! and only some descriptors were held outside of it ([`crate::holder`]).
//!
//! Before the first worker that follows does anything else, [`forget_lost`] makes the state one
//! without those descriptors. An inode then is like one whose descriptor was evicted. Open files
//! are opened again by [`PassthroughFs::reopen_lost`], as soon as inodes can be found.

use std::collections::HashSet;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::NodeId;

use super::fs::PassthroughFs;
use super::inode_shard::{SHARDS, Shard};
use super::open_files::{LostFile, OpenFiles};
use super::posix_locks::PosixLocks;
use super::syncfs_directories::SyncfsDirectories;
use crate::state::arena::Arena;
use crate::state::mounts;

/// What is out of reach although the guest knows it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Inodes without a reference: accesses give ESTALE.
    pub inodes: usize,
    /// Locks, which others can take now.
    pub locks: usize,
}

/// Makes the state in an arena one without the descriptors that have not `arrived`.
///
/// For a worker, before it starts threads or opens anything. If it dies, the next one can do so
/// again.
pub fn forget_lost(arena: &Arc<Arena>, arrived: &HashSet<RawFd>) -> Lost {
    let is_lost = |number: RawFd| !arrived.contains(&number);
    let mut lost = Lost::default();
    for shard in 0..SHARDS {
        // In case that the worker before died in the middle of a change.
        Shard::correct(arena, shard);
        lost.inodes += Shard::forget_lost(arena, shard, is_lost);
    }
    OpenFiles::correct(arena);
    OpenFiles::forget_lost(arena, is_lost);
    PosixLocks::correct(arena);
    lost.locks = PosixLocks::forget_lost(arena, is_lost);
    SyncfsDirectories::correct(arena);
    SyncfsDirectories::forget_lost(arena, is_lost);
    for (_, mount) in arena.mounts().in_memory() {
        if mount.descriptor.get().is_some_and(is_lost) {
            mount.descriptor.set(None);
        }
    }
    lost
}

/// Has everything held again that an earlier worker had held: another supervisor holds it from now
/// on.
pub fn hold_again(arena: &Arc<Arena>) {
    let Some(holder) = arena.holder() else {
        return;
    };
    let mut held = Vec::new();
    for shard in 0..SHARDS {
        held.extend(Shard::held(arena, shard));
    }
    held.extend(OpenFiles::held(arena));
    held.extend(PosixLocks::held(arena));
    let syncfs = arena.syncfs_mounts();
    let syncfs = syncfs.in_memory();
    held.extend(syncfs.filter_map(|(_, mount)| mount.descriptor.get()));
    held.extend(mounts::descriptors(arena));
    holder.hold(&held);
}

impl PassthroughFs {
    /// Opens the guest's files again whose descriptors are lost. Returns how many there were, and
    /// how many of them cannot be opened: accesses give EBADF. From then on, the state is complete.
    pub fn reopen_lost(&self) -> (usize, usize) {
        let lost = self.state.files.lost();
        let count = lost.len();
        let failed = lost.into_iter().filter(|file| {
            let opened = self.open_lost(file);
            let is_failed = opened.is_err();
            if let Err(error) = &opened {
                log::debug!("a file of a guest cannot be opened again: {error}");
            }
            self.state.files.restore(file, opened.ok());
            is_failed
        });
        let failed = failed.count();
        let header = self.share.arena.header();
        header.is_incomplete.store(0, Ordering::Release);
        (count, failed)
    }

    fn open_lost(&self, file: &LostFile) -> io::Result<OwnedFd> {
        self.open_inode(&self.node(NodeId::new(file.node))?, file.flags)
    }
}
