//! References to inodes in the arena's heap, a block for each.
//!
//! ```text
//!          file handle                       name
//! word 0   bits  0..2   1                    bits  0..2   2
//!                2..10  length in bytes            2..32  birth time: nanoseconds
//!               16..32  mount                     32..64  the block of the directory; 0 is the
//!               32..64  type                              share's root
//! word 1.. the handle                        birth time: seconds
//! word 2..                                   length in 1 byte, then the name
//! ```
//!
//! What has no name, and so cannot be reopened, has a block of kind 3.
//!
//! **Order of changes.** [`InodeRefs::store`] counts the use of the directory or mount, takes the
//! block and fills it, and the caller stores the block in the inode's record last. To remove one,
//! the caller clears the record first; then [`InodeRefs::free`] frees the block and uncounts the
//! use. So a record has a whole block at any time, and what the block needs is there. A worker that
//! dies in between loses a block, or leaves a use counted.

use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::errno::stale;
use super::inode_memory::InodeMemory;
use super::inode_ref::{BirthTime, InodeFingerprint, InodeRef, extra_bytes};
use super::mount_handles::OpenableHandle;
use super::mounts::{MountIndex, Mounts};
use super::remembered_dir_block::NAME_MAX;
use super::remembered_names::{RememberedDir, RememberedDirs, RememberedName, heap_is_full};
use crate::state::change::Place;
use crate::state::heap::{self, Block, Heap};
use crate::sys::file_handle::{FileHandle, MAX_BYTES};

/// Kinds of references.
const HANDLE: u64 = 1;
const NAME: u64 = 2;
const UNLINKED: u64 = 3;

/// Words before the length of a name.
const NAME_HEAD: usize = 2;

/// The references that a guest's inode records have.
#[derive(Debug)]
pub(super) struct InodeRefs {
    heap: Arc<Heap>,
    dirs: RememberedDirs,
    mounts: Arc<Mounts>,
}

/// A reference's words.
#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    Handle {
        mount: MountIndex,
        kind: i32,
        bytes: &'a [AtomicU64],
        len: usize,
    },
    Name {
        dir: Option<Block>,
        birth_time: BirthTime,
        /// The length in 1 byte, then the name.
        name: &'a [AtomicU64],
    },
    Unlinked,
}

impl InodeRefs {
    /// The references in a heap, which earlier workers stored there. The bytes of directories are
    /// taken from `memory`.
    pub(super) fn new(heap: Arc<Heap>, mounts: Arc<Mounts>, memory: Arc<InodeMemory>) -> Self {
        Self {
            dirs: RememberedDirs::new(Arc::clone(&heap), memory),
            heap,
            mounts,
        }
    }

    /// The directories of references by name.
    pub(super) fn dirs(&self) -> &RememberedDirs {
        &self.dirs
    }

    /// Stores a reference. The caller has taken its [`extra_bytes`](InodeRef::extra_bytes) of the
    /// guest's memory.
    ///
    /// # Errors
    /// ENOMEM if the heap is full; ENAMETOOLONG.
    pub(super) fn store(&self, inode_ref: &InodeRef) -> io::Result<Block> {
        match inode_ref {
            InodeRef::Handle(handle) => self.store_handle(handle),
            InodeRef::Name { name, birth_time } => self.store_name(name, *birth_time),
            InodeRef::Unlinked => self.fill(&[UNLINKED], &[]),
        }
    }

    fn store_handle(&self, openable: &OpenableHandle) -> io::Result<Block> {
        let handle = openable.handle();
        let len = u8::try_from(handle.len()).map_err(|_| too_long())?;
        let mount = u16::try_from(openable.mount_index()).map_err(|_| stale())?;
        let known = self.mounts.get(MountIndex(mount.into()));
        let known = known.ok_or_else(stale)?;
        let kind = handle.kind().cast_unsigned();
        let head = HANDLE | u64::from(len) << 2 | u64::from(mount) << 16 | u64::from(kind) << 32;
        known.handles().retain(openable);
        self.fill(&[head], handle.bytes())
            .inspect_err(|_| known.handles().release())
    }

    fn store_name(&self, name: &RememberedName, birth_time: BirthTime) -> io::Result<Block> {
        let len = u8::try_from(name.len()).map_err(|_| too_long())?;
        let mut bytes = [0; 1 + NAME_MAX];
        let bytes = &mut bytes[..1 + usize::from(len)];
        bytes[0] = len;
        bytes[1..].copy_from_slice(name.name.to_bytes());
        let dir = name.dir.as_ref().map(RememberedDir::link);
        let head = NAME
            | u64::from(birth_time.nanoseconds()) << 2
            | u64::from(dir.map_or(0, Block::raw)) << 32;
        self.fill(&[head, birth_time.seconds().cast_unsigned()], bytes)
            .inspect_err(|_| dir.into_iter().for_each(|dir| self.dirs.unlink(dir)))
    }

    /// Fills a new block.
    fn fill(&self, head: &[u64], bytes: &[u8]) -> io::Result<Block> {
        let len = size_of_val(head) + bytes.len();
        let block = self.heap.allocate(len);
        let block = block.ok_or_else(|| heap_is_full(&self.heap))?;
        let words = self.heap.words(block);
        for (word, value) in words.iter().zip(head) {
            word.set(*value);
        }
        heap::write_bytes(words.get(head.len()..).unwrap_or_default(), bytes);
        Ok(block)
    }

    /// A reference for a request, which stays valid when the inode gets another. The caller holds
    /// the lock of the record that has the block.
    pub(super) fn load(&self, block: Block) -> InodeRef {
        match self.content(block) {
            Content::Handle {
                mount,
                kind,
                bytes,
                len,
            } => {
                let mut buffer = [0; MAX_BYTES];
                let handle = FileHandle::from_parts(kind, handle_bytes(bytes, len, &mut buffer));
                let mount = self.mounts.get(mount);
                let openable = mount.and_then(|mount| mount.handles().openable(handle));
                // Without the mount's descriptor, the inode is out of reach.
                openable.map_or(InodeRef::Unlinked, InodeRef::Handle)
            }
            Content::Name {
                dir,
                birth_time,
                name,
            } => {
                let name = RememberedName {
                    dir: dir.map(|dir| self.dirs.share(dir)),
                    name: read_name(name),
                };
                InodeRef::Name { name, birth_time }
            }
            Content::Unlinked => InodeRef::Unlinked,
        }
    }

    /// Whether the fingerprint is that of the referenced inode.
    pub(super) fn matches(&self, block: Block, fingerprint: &InodeFingerprint) -> bool {
        match self.content(block) {
            Content::Handle {
                kind, bytes, len, ..
            } => {
                let mut buffer = [0; MAX_BYTES];
                let bytes = handle_bytes(bytes, len, &mut buffer);
                (fingerprint.handle.as_ref())
                    .is_some_and(|handle| handle.kind() == kind && handle.bytes() == bytes)
            }
            Content::Name { birth_time, .. } => fingerprint.birth_time == Some(birth_time),
            Content::Unlinked => false,
        }
    }

    /// Whether the reference stays valid when the inode is renamed.
    pub(super) fn survives_rename(&self, block: Block) -> bool {
        matches!(self.content(block), Content::Handle { .. })
    }

    /// Bytes of a name or handle that is longer than an inode's memory includes.
    pub(super) fn extra_bytes(&self, block: Block) -> u64 {
        extra_bytes(match self.content(block) {
            Content::Handle { len, .. } => len,
            Content::Name { name, .. } => name_len(name),
            Content::Unlinked => 0,
        })
    }

    /// Frees a reference that no record has any more. May close a mount's descriptor, so the caller
    /// should hold no lock.
    pub(super) fn free(&self, block: Block) {
        // Read before: another thread may take the block as soon as it is free.
        let (mount, dir) = match self.content(block) {
            Content::Handle { mount, .. } => (self.mounts.get(mount), None),
            Content::Name { dir, .. } => (None, dir),
            Content::Unlinked => (None, None),
        };
        self.heap.free(block);
        if let Some(mount) = mount {
            mount.handles().release();
        }
        if let Some(dir) = dir {
            self.dirs.unlink(dir);
        }
    }

    /// Frees what dead workers have lost, unless a request has a reference. No record may have one,
    /// and none may be stored meanwhile.
    pub(super) fn forget_lost(&self) {
        if self.dirs.forget_lost() {
            self.mounts.release_handles();
        }
    }

    fn content(&self, block: Block) -> Content<'_> {
        let words = self.heap.words(block);
        let load = |index: usize| {
            let word: Option<&AtomicU64> = words.get(index);
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        };
        let head = load(0);
        match head & 3 {
            HANDLE => Content::Handle {
                mount: MountIndex(bits(head, 16, 16)),
                kind: bits(head, 32, 32).cast_signed(),
                bytes: words.get(1..).unwrap_or_default(),
                len: bits(head, 2, 8) as usize,
            },
            NAME => Content::Name {
                dir: Block::from_raw(bits(head, 32, 32)),
                birth_time: BirthTime::from_parts(load(1).cast_signed(), bits(head, 2, 30)),
                name: words.get(NAME_HEAD..).unwrap_or_default(),
            },
            _ => Content::Unlinked,
        }
    }
}

/// `count` bits of a word.
fn bits(word: u64, from: u32, count: u32) -> u32 {
    u32::try_from(word >> from & ((1 << count) - 1)).unwrap_or(0)
}

fn handle_bytes<'a>(words: &[AtomicU64], len: usize, buffer: &'a mut [u8; MAX_BYTES]) -> &'a [u8] {
    let bytes = &mut buffer[..len.min(MAX_BYTES)];
    heap::read_bytes(words, bytes);
    bytes
}

fn name_len(words: &[AtomicU64]) -> usize {
    let mut len = [0];
    heap::read_bytes(words, &mut len);
    len[0].into()
}

fn read_name(words: &[AtomicU64]) -> Box<CStr> {
    // The length, the name and a NUL.
    let mut bytes = [0; 1 + NAME_MAX + 1];
    heap::read_bytes(words, &mut bytes[..1 + name_len(words)]);
    let name = CStr::from_bytes_until_nul(&bytes[1..]);
    name.unwrap_or_default().into()
}

fn too_long() -> io::Error {
    io::Error::from_raw_os_error(libc::ENAMETOOLONG)
}

#[cfg(test)]
mod tests;
