//! Names by which inodes without a descriptor are found again.
//!
//! ```text
//! the share's root ── "a" ── "b" ┬─ "file1"
//!                                └─ "file2"
//! ```
//!
//! An inode remembers its name and the directory that holds it. Directories are shared by all that
//! is in them, and remember the same of themselves, up to the share's root. A remembered directory
//! says what was found once; it depends on no inode that the guest knows, and does not follow
//! renames. What is found by it must be compared with the identity that it remembers.
//!
//! A directory is a block of the arena's heap ([`DirBlock`]), which counts what uses it: the
//! directories and inodes in it, and the [`RememberedDir`]s that requests have. The block is freed
//! with the last one.
//!
//! **Order of changes.** A use is counted before the block with it is taken, and uncounted after
//! that block is freed. So a count is never too low. If the worker dies, what its requests had
//! stays counted, and those directories take memory until the guest holds nothing
//! ([`RememberedDirs::forget_lost`]).
//!
//! The directories by identity are on the worker's heap. The next worker knows none of them at
//! first, so it may remember a directory a second time.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gangplank_service::rate_limited;
use parking_lot::Mutex;

use super::inode_memory::InodeMemory;
use super::inode_ref::BirthTime;
use super::mounts::Identity;
use super::remembered_dir_block::{DirBlock, NameBuffer};
use crate::state::change::Place;
use crate::state::heap::{Block, Heap};

/// Limit of components in a remembered path, the inode's own name included. Inodes at deeper paths
/// keep their descriptors.
pub(super) const MAX_DEPTH: usize = 64;

/// Bytes of a remembered directory besides its name: its block, and its part of the map.
const DIR_BYTES: u64 = 112;

/// Directories for which the map keeps room.
const FEW_DIRS: usize = 64;

/// The name of an inode, and the directory that holds it.
#[derive(Debug, Clone)]
pub(super) struct RememberedName {
    /// The directory; `None` is the share's root.
    pub(super) dir: Option<RememberedDir>,
    /// A single component.
    pub(super) name: Box<CStr>,
}

/// A directory on the way to remembered inodes. It exists as long as this value.
#[derive(Debug)]
pub(super) struct RememberedDir {
    dirs: Arc<Known>,
    block: Block,
}

/// A directory that exists as long as one below it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ancestor<'a> {
    dirs: &'a Known,
    block: Block,
}

/// The remembered directories of a guest.
#[derive(Debug, Clone)]
pub(super) struct RememberedDirs {
    known: Arc<Known>,
}

#[derive(Debug)]
struct Known {
    heap: Arc<Heap>,
    memory: Arc<InodeMemory>,
    /// The latest of each identity.
    ///
    /// Under this lock a count changes from or to 0, blocks are freed, and nothing but the heap is
    /// locked.
    by_identity: Mutex<HashMap<Identity, Block>>,
    /// Number of `RememberedDir` values.
    in_hand: AtomicUsize,
}

impl RememberedName {
    /// Bytes of the name.
    pub(super) fn len(&self) -> usize {
        self.name.count_bytes()
    }
}

impl RememberedDir {
    /// The directory, and those that hold it, up to the one in the share's root.
    pub(super) fn and_above(&self) -> impl Iterator<Item = Ancestor<'_>> {
        let dirs = &*self.dirs;
        let above = |block: &Block| dirs.content(*block).parent();
        std::iter::successors(Some(self.block), above)
            .map(move |block| Ancestor { dirs, block })
            .take(MAX_DEPTH)
    }

    /// Its birth time, if the file system has one.
    pub(super) fn birth_time(&self) -> Option<BirthTime> {
        self.dirs.content(self.block).birth_time()
    }

    /// Whether this is the path of the directory, relative to the share's root.
    pub(super) fn has_path(&self, path: &[u8]) -> bool {
        let mut dirs = self.and_above();
        let mut components = path.rsplit(|byte| *byte == b'/');
        components.all(|component| {
            dirs.next()
                .is_some_and(|dir| dir.name().to_bytes() == component)
        }) && dirs.next().is_none()
    }

    /// Counts one use more, by something that is to be stored in the arena.
    /// [`RememberedDirs::unlink`] ends it.
    pub(super) fn link(&self) -> Block {
        self.dirs.content(self.block).count().add(1);
        self.block
    }
}

impl PartialEq for RememberedDir {
    fn eq(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

impl Clone for RememberedDir {
    fn clone(&self) -> Self {
        self.link();
        RememberedDirs::hand_out(&self.dirs, self.block)
    }
}

impl Drop for RememberedDir {
    fn drop(&mut self) {
        self.dirs.uncount(self.block);
        self.dirs.in_hand.fetch_sub(1, Ordering::Release);
    }
}

impl Ancestor<'_> {
    /// What it is.
    pub(super) fn identity(self) -> Identity {
        self.content().identity()
    }

    /// Its birth time, if the file system has one.
    pub(super) fn birth_time(self) -> Option<BirthTime> {
        self.content().birth_time()
    }

    /// Its own name.
    pub(super) fn name(self) -> NameBuffer {
        self.content().name()
    }

    fn content(&self) -> DirBlock<'_> {
        self.dirs.content(self.block)
    }
}

impl RememberedDirs {
    /// Those in a heap. Their bytes are taken from `memory`, which has those of an earlier worker's
    /// directories already ([`crate::state::heap::HeapRecord::directory_bytes`]).
    pub(super) fn new(heap: Arc<Heap>, memory: Arc<InodeMemory>) -> Self {
        Self {
            known: Arc::new(Known {
                heap,
                memory,
                by_identity: Mutex::default(),
                in_hand: AtomicUsize::new(0),
            }),
        }
    }

    /// The directory as it was remembered last.
    pub(super) fn find(&self, identity: Identity) -> Option<RememberedDir> {
        let by_identity = self.known.by_identity.lock();
        let block = *by_identity.get(&identity)?;
        Some(self.share(block))
    }

    /// A directory whose use is stored, and stays stored until this returns.
    pub(super) fn share(&self, block: Block) -> RememberedDir {
        self.known.content(block).count().add(1);
        Self::hand_out(&self.known, block)
    }

    /// Ends a use that was stored, after that has been removed.
    pub(super) fn unlink(&self, block: Block) {
        self.known.uncount(block);
    }

    /// Remembers a directory, or finds it if it is remembered by this name.
    ///
    /// # Errors
    /// ENOMEM if it does not fit the guest's memory.
    pub(super) fn remember(
        &self,
        name: RememberedName,
        identity: Identity,
        birth_time: Option<BirthTime>,
    ) -> io::Result<RememberedDir> {
        let known = &*self.known;
        let bytes = DIR_BYTES + name.len() as u64;
        let parent = name.dir.as_ref().map(|dir| dir.block);
        let mut by_identity = known.by_identity.lock();
        if let Some(block) = by_identity.get(&identity)
            && known.content(*block).is(parent, &name.name, birth_time)
        {
            return Ok(self.share(*block));
        }
        known.memory.take(bytes)?;
        known.heap.record().directory_bytes.add(bytes);
        let linked = name.dir.as_ref().map(RememberedDir::link);
        let Some(block) = known.heap.allocate(DirBlock::len(&name.name)) else {
            drop(by_identity);
            linked.into_iter().for_each(|dir| known.uncount(dir));
            known.give_back(bytes);
            return Err(heap_is_full(&known.heap));
        };
        known
            .content(block)
            .fill(parent, &name.name, identity, birth_time);
        by_identity.insert(identity, block);
        Ok(Self::hand_out(&self.known, block))
    }

    /// Frees the whole heap, with all that dead workers have lost there, and returns true, unless a
    /// request has a directory. No use may be stored, nor be stored meanwhile.
    pub(super) fn forget_lost(&self) -> bool {
        let known = &*self.known;
        let mut by_identity = known.by_identity.lock();
        if known.in_hand.load(Ordering::Acquire) != 0 {
            return false;
        }
        by_identity.clear();
        known.heap.free_all();
        let bytes = &known.heap.record().directory_bytes;
        known.memory.give_back(bytes.load(Ordering::Relaxed));
        bytes.set(0);
        true
    }

    /// A value for a use that is counted.
    fn hand_out(dirs: &Arc<Known>, block: Block) -> RememberedDir {
        dirs.in_hand.fetch_add(1, Ordering::Relaxed);
        RememberedDir {
            dirs: Arc::clone(dirs),
            block,
        }
    }
}

impl Known {
    fn content(&self, block: Block) -> DirBlock<'_> {
        DirBlock::new(self.heap.words(block))
    }

    /// Counts one use fewer. Frees the directory with the last one, and then those above it that
    /// nothing else uses.
    fn uncount(&self, block: Block) {
        let mut next = Some(block);
        while let Some(block) = next {
            let dir = self.content(block);
            let is_used_otherwise = |count: u64| (count > 1).then(|| count - 1);
            if dir.count().change_if_some(is_used_otherwise) {
                return;
            }
            let mut by_identity = self.by_identity.lock();
            // Another thread may have found it since.
            if dir.count().subtract(1) > 1 {
                return;
            }
            next = dir.parent();
            let bytes = DIR_BYTES + dir.name().to_bytes().len() as u64;
            let identity = dir.identity();
            if by_identity.get(&identity) == Some(&block) {
                by_identity.remove(&identity);
            }
            let room = 2 * by_identity.len() + FEW_DIRS;
            if by_identity.capacity() > 2 * room {
                by_identity.shrink_to(room);
            }
            self.heap.free(block);
            drop(by_identity);
            self.give_back(bytes);
        }
    }

    /// Gives the bytes of a directory back.
    fn give_back(&self, bytes: u64) {
        self.heap.record().directory_bytes.subtract(bytes);
        self.memory.give_back(bytes);
    }
}

/// ENOMEM, with a line in the log.
pub(super) fn heap_is_full(heap: &Heap) -> io::Error {
    rate_limited!(
        error,
        "the names and file handles by which a guest's inodes are found again take {} bytes and \
         have no room for another, so the guest gets ENOMEM; raise --max-inode-memory",
        heap.bytes_in_use()
    );
    io::Error::from_raw_os_error(libc::ENOMEM)
}

#[cfg(test)]
mod tests;
