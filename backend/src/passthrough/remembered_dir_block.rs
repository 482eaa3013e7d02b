//! The layout of a remembered directory in the arena's heap.
//!
//! ```text
//! word 0   number of uses
//! word 1   bits  0..32  the block of the directory that holds it; 0 is the share's root
//!               32..48  mount
//!               48..52  type of the file
//!               52..60  length of the name
//! word 2   inode number
//! word 3   birth time: seconds
//! word 4   birth time: nanoseconds, plus one; 0 if there is no birth time
//! word 5.. the name
//! ```

use std::ffi::CStr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use super::file_type::FileType;
use super::inode_ref::BirthTime;
use super::mounts::{Identity, MountIndex};
use crate::state::change::Place;
use crate::state::heap::{self, Block};

/// Words before the name.
const HEAD: usize = 5;

/// Length of the longest name in bytes (`NAME_MAX`, `linux/limits.h`).
pub(super) const NAME_MAX: usize = 255;

/// What the words of a block that is no directory's read as.
static ZERO: AtomicU64 = AtomicU64::new(0);

/// A directory's block.
#[derive(Debug, Clone, Copy)]
pub(super) struct DirBlock<'a> {
    words: &'a [AtomicU64],
}

/// A name, copied out of a block.
pub(super) struct NameBuffer {
    /// Ends with at least one NUL.
    bytes: [u8; NAME_MAX + 1],
}

impl NameBuffer {
    /// The first `len` bytes of the words.
    pub(super) fn read(words: &[AtomicU64], len: usize) -> Self {
        let mut bytes = [0; NAME_MAX + 1];
        heap::read_bytes(words, &mut bytes[..len.min(NAME_MAX)]);
        Self { bytes }
    }
}

impl Deref for NameBuffer {
    type Target = CStr;

    fn deref(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl<'a> DirBlock<'a> {
    /// The directory in the words of a block.
    pub(super) fn new(words: &'a [AtomicU64]) -> Self {
        Self { words }
    }

    /// Bytes of a block for a directory of this name.
    pub(super) fn len(name: &CStr) -> usize {
        HEAD * size_of::<u64>() + name.count_bytes()
    }

    /// Fills the block of a directory that is used once.
    pub(super) fn fill(
        self,
        parent: Option<Block>,
        name: &CStr,
        identity: Identity,
        birth_time: Option<BirthTime>,
    ) {
        let MountIndex(mount) = identity.mount;
        let parent = parent.map_or(0, Block::raw);
        let place = u64::from(parent)
            | u64::from(mount & 0xffff) << 32
            | u64::from(identity.file_type.number()) << 48
            | (name.count_bytes() as u64 & 0xff) << 52;
        let (seconds, nanoseconds) = birth_time.map_or((0, 0), |birth_time| {
            let nanoseconds = u64::from(birth_time.nanoseconds()) + 1;
            (birth_time.seconds().cast_unsigned(), nanoseconds)
        });
        for (index, value) in [1, place, identity.ino, seconds, nanoseconds]
            .into_iter()
            .enumerate()
        {
            self.word(index).set(value);
        }
        heap::write_bytes(self.name_words(), name.to_bytes());
    }

    /// Number of uses.
    pub(super) fn count(self) -> &'a AtomicU64 {
        self.word(0)
    }

    /// The directory that holds it; `None` is the share's root.
    pub(super) fn parent(self) -> Option<Block> {
        Block::from_raw(self.bits(0, 32))
    }

    /// Its own name.
    pub(super) fn name(self) -> NameBuffer {
        NameBuffer::read(self.name_words(), self.bits(52, 8) as usize)
    }

    /// What it is.
    pub(super) fn identity(self) -> Identity {
        let file_type = u8::try_from(self.bits(48, 4)).unwrap_or(0);
        Identity {
            mount: MountIndex(self.bits(32, 16)),
            ino: self.load(2),
            file_type: FileType::from_number(file_type),
        }
    }

    /// Its birth time, if the file system has one.
    pub(super) fn birth_time(self) -> Option<BirthTime> {
        let nanoseconds = self.load(4).checked_sub(1)?;
        Some(BirthTime::from_parts(
            self.load(3).cast_signed(),
            u32::try_from(nanoseconds).ok()?,
        ))
    }

    /// Whether it is remembered by this name and birth time.
    pub(super) fn is(
        self,
        parent: Option<Block>,
        name: &CStr,
        birth_time: Option<BirthTime>,
    ) -> bool {
        self.parent() == parent && *self.name() == *name && self.birth_time() == birth_time
    }

    fn name_words(self) -> &'a [AtomicU64] {
        self.words.get(HEAD..).unwrap_or_default()
    }

    fn word(self, index: usize) -> &'a AtomicU64 {
        let is_there = index < self.words.len();
        // As in `Heap::free`.
        debug_assert!(is_there || !cfg!(test), "not the block of a directory");
        self.words.get(index).unwrap_or(&ZERO)
    }

    fn load(self, index: usize) -> u64 {
        self.word(index).load(Ordering::Relaxed)
    }

    /// Bits of word 1.
    fn bits(self, from: u32, count: u32) -> u32 {
        let bits = self.load(1) >> from & ((1 << count) - 1);
        u32::try_from(bits).unwrap_or(0)
    }
}
