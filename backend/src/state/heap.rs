//! Small blocks of memory in the arena, for what has no fixed size: names and file handles.
//!
//! ```text
//! chunks    class, used blocks │ class, used blocks │ ...
//! memory    4 KiB of blocks    │ 4 KiB of blocks    │ ...
//! ```
//!
//! The memory is divided into chunks of 4 KiB. A chunk in use has blocks of one size, its class,
//! and a bit for each that says whether the block is taken. A chunk without taken blocks belongs to
//! no class, so blocks of any size can take its place.
//!
//! **Order of changes.** Which blocks are taken is in those bits alone, and each operation changes
//! one bit by one store:
//!
//! 1. [`Heap::allocate`] stores the class, if the chunk has none, and before that the number of
//!    chunks, if the chunk was never used. Then it sets the bit.
//! 2. [`Heap::free`] clears the bit. Then, if no block of the chunk is taken, it clears the class.
//!
//! So a worker that dies at any point leaves each block taken or free. A class without taken blocks
//! means nothing. A block that is taken and that no record has is lost until
//! [`Heap::free_all`]: at most one for each thread of the dead worker, because a record has a block
//! only between `allocate` and `free`.
//!
//! The lists of chunks with free blocks are derived from the bits. [`Heap::new`] makes them, and
//! takes time for each chunk, not for each block.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::arena::{Arena, Part};
use super::change::Place;
use super::table::log_failure;
use crate::sys::shared_memory::shared_struct;

/// Bytes of the unit in which blocks are counted.
const UNIT: usize = 16;

/// Bytes of a chunk: a page of most machines, so that an empty one can be given back.
pub const CHUNK: usize = 4096;

/// Units of a chunk.
const CHUNK_UNITS: u32 = 256;

/// Words of a chunk.
const CHUNK_WORDS: usize = CHUNK / size_of::<u64>();

/// Most chunks of a heap, number 0 included: what 32 bits count in units.
pub const MAX_CHUNKS: u64 = 1 << 24;

/// Chunks that a heap has in addition, because each class may have one that is not full.
pub const SPARE_CHUNKS: u64 = CLASSES.len() as u64;

/// Block sizes in units. The larger ones divide a chunk with little rest.
const CLASSES: [u32; 17] = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 21, 28, 36, 42];

/// Length of the longest block in bytes.
pub const MAX_LEN: usize = 42 * UNIT;

/// Empty chunks whose memory is kept: 256 KiB. Beyond that, and beyond a quarter of the chunks in
/// use, the memory of [`RELEASED_AT_ONCE`] is given back.
const MAX_EMPTY: u32 = 64;

/// Chunks whose memory is given back by one operation, by a system call for each.
const RELEASED_AT_ONCE: u32 = 32;

shared_struct! {
    /// The beginning of a heap.
    #[derive(Debug, Default)]
    pub struct HeapRecord {
        /// Number of chunks that were ever used.
        chunks: AtomicU32,
        reserved: AtomicU32,
        /// Bytes that count as the memory of remembered directories.
        pub directory_bytes: AtomicU64,
    }
}

shared_struct! {
    /// One chunk.
    #[derive(Debug, Default)]
    pub struct ChunkRecord {
        /// Index of the block size plus one; 0 if the chunk has none.
        class: AtomicU32,
        /// Number of free blocks. This and the following two are derived.
        free: AtomicU32,
        /// The chunk before this one in its list; 0 if it is the first.
        previous: AtomicU32,
        /// The chunk behind this one in its list; 0 if it is the last.
        next: AtomicU32,
        /// A bit for each block: whether it is taken.
        used: [AtomicU64; 4],
    }
}

/// A block of a heap: where it begins, in units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block(NonZeroU32);

impl Block {
    /// The block of a number that a record has; `None` for 0.
    pub fn from_raw(raw: u32) -> Option<Self> {
        NonZeroU32::new(raw).map(Self)
    }

    /// The block as a number, never 0.
    pub fn raw(self) -> u32 {
        self.0.get()
    }

    fn chunk(self) -> u32 {
        self.raw() / CHUNK_UNITS
    }

    fn unit(self) -> u32 {
        self.raw() % CHUNK_UNITS
    }
}

/// The heap of a guest's arena.
#[derive(Debug)]
pub struct Heap {
    arena: Arc<Arena>,
    /// Number 0 is never used, so that no block has the number 0.
    chunks: Part<ChunkRecord>,
    words: Part<AtomicU64>,
    lists: Mutex<Lists>,
}

/// Lists of chunks, each as its first chunk; 0 if it is empty.
#[derive(Debug, Default)]
struct Lists {
    /// Chunks that have both free and taken blocks, by class.
    with_room: [u32; CLASSES.len()],
    /// Chunks without taken blocks that may have memory.
    empty: u32,
    empty_count: u32,
    /// Chunks without taken blocks whose memory was given back.
    released: u32,
    /// Number of chunks with taken blocks.
    in_use: u32,
}

/// The smallest class whose blocks have `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    let units = u32::try_from(len.div_ceil(UNIT)).ok()?;
    let class = CLASSES.partition_point(|size| *size < units);
    (class < CLASSES.len()).then_some(class)
}

/// Blocks of a chunk of this class.
fn blocks(class: usize) -> u32 {
    CHUNK_UNITS / CLASSES[class]
}

/// Those bits of word `index` of a chunk's bitmap that stand for blocks.
fn mask(class: usize, index: usize) -> u64 {
    let before = u32::try_from(64 * index).unwrap_or(u32::MAX);
    match blocks(class).saturating_sub(before) {
        64.. => u64::MAX,
        bits => (1 << bits) - 1,
    }
}

impl ChunkRecord {
    fn class(&self) -> Option<usize> {
        let class = self.class.load(Ordering::Relaxed).checked_sub(1)? as usize;
        (class < CLASSES.len()).then_some(class)
    }

    /// Number of taken blocks.
    fn taken(&self) -> u32 {
        self.used
            .iter()
            .map(|word| word.load(Ordering::Relaxed).count_ones())
            .sum()
    }
}

impl Heap {
    /// The heap in an arena, with the blocks that are taken there. A worker makes one: the lists
    /// and the lock are this value's.
    pub fn new(arena: &Arc<Arena>) -> Arc<Self> {
        let heap = Self {
            arena: Arc::clone(arena),
            chunks: arena.heap_chunks(),
            words: arena.heap_words(),
            lists: Mutex::default(),
        };
        heap.restore(&mut heap.lists.lock());
        Arc::new(heap)
    }

    /// The beginning of the heap in the arena.
    pub fn record(&self) -> &HeapRecord {
        &self.arena.header().heap
    }

    /// Takes a block of at least `len` bytes, whose content is arbitrary. `None` if the block would
    /// be longer than [`MAX_LEN`] or the heap is full.
    pub fn allocate(&self, len: usize) -> Option<Block> {
        let class = class_of(len)?;
        let mut lists = self.lists.lock();
        let chunk = match lists.with_room[class] {
            0 => self.take_chunk(&mut lists, class)?,
            chunk => chunk,
        };
        let record = self.chunk(chunk)?;
        let (index, bit) = record.used.iter().enumerate().find_map(|(index, word)| {
            let free = !word.load(Ordering::Relaxed) & mask(class, index);
            (free != 0).then(|| (index, free.trailing_zeros()))
        })?;
        let taken = record.used[index].load(Ordering::Relaxed);
        record.used[index].set(taken | 1 << bit);
        let free = record.free.load(Ordering::Relaxed).saturating_sub(1);
        record.free.store(free, Ordering::Relaxed);
        if free == 0 {
            self.unlist(chunk, &mut lists.with_room[class]);
        }
        let position = u32::try_from(64 * index).ok()? + bit;
        Block::from_raw(chunk * CHUNK_UNITS + position * CLASSES[class])
    }

    /// Frees a block. No record may have it any more. Now and then it gives memory back to the
    /// system, by up to 32 system calls.
    pub fn free(&self, block: Block) {
        let mut lists = self.lists.lock();
        let Some((record, class, word, bit)) = self.taken(block) else {
            // Unit tests stop here. The fuzz target "state" damages the heap on purpose.
            let is_damaged = !cfg!(test);
            debug_assert!(is_damaged, "{block:?} is not taken");
            log::error!("a block of a guest's state was freed twice; please report this");
            return;
        };
        let chunk = block.chunk();
        word.set(word.load(Ordering::Relaxed) & !bit);
        let free = record.free.load(Ordering::Relaxed).saturating_add(1);
        record.free.store(free, Ordering::Relaxed);
        if free < blocks(class) {
            if free == 1 {
                self.list(chunk, &mut lists.with_room[class]);
            }
            return;
        }
        record.class.set(0);
        if free > 1 {
            self.unlist(chunk, &mut lists.with_room[class]);
        }
        self.list(chunk, &mut lists.empty);
        lists.empty_count += 1;
        lists.in_use = lists.in_use.saturating_sub(1);
        if lists.empty_count > MAX_EMPTY.max(lists.in_use / 4) {
            self.release_empty(&mut lists, RELEASED_AT_ONCE);
        }
    }

    /// Frees all blocks, lost ones too. No record may have one, and no thread may use one.
    pub fn free_all(&self) {
        let mut lists = self.lists.lock();
        let chunks = self.record().chunks.load(Ordering::Relaxed);
        for record in self.chunks.iter().take(chunks as usize + 1).skip(1) {
            record.used.iter().for_each(|word| word.set(0));
            record.class.set(0);
        }
        self.restore(&mut lists);
        self.release_empty(&mut lists, u32::MAX);
    }

    /// The words of a taken block; none if the block is not taken.
    pub fn words(&self, block: Block) -> &[AtomicU64] {
        let class = self.chunk(block.chunk()).and_then(ChunkRecord::class);
        let units = class.map_or(0, |class| CLASSES[class] as usize);
        let from = block.raw() as usize * 2;
        self.words.get(from..from + units * 2).unwrap_or_default()
    }

    /// Bytes of the chunks that have taken blocks.
    pub fn bytes_in_use(&self) -> usize {
        self.lists.lock().in_use as usize * CHUNK
    }

    /// Where the bit of a taken block is.
    fn taken(&self, block: Block) -> Option<(&ChunkRecord, usize, &AtomicU64, u64)> {
        let record = self.chunk(block.chunk())?;
        let class = record.class()?;
        let size = CLASSES[class];
        let position = block.unit() / size;
        let word = record.used.get(position as usize / 64)?;
        let bit = 1 << (position % 64);
        let is_taken = block.unit().is_multiple_of(size) && word.load(Ordering::Relaxed) & bit != 0;
        is_taken.then_some((record, class, word, bit))
    }

    /// Gives a chunk without taken blocks to a class.
    fn take_chunk(&self, lists: &mut Lists, class: usize) -> Option<u32> {
        let chunk = if lists.empty != 0 {
            let chunk = lists.empty;
            self.unlist(chunk, &mut lists.empty);
            lists.empty_count -= 1;
            chunk
        } else if lists.released != 0 {
            let chunk = lists.released;
            self.unlist(chunk, &mut lists.released);
            chunk
        } else {
            let chunk = self.record().chunks.load(Ordering::Relaxed);
            let chunk = chunk.checked_add(1)?;
            self.chunk(chunk)?;
            self.record().chunks.set(chunk);
            chunk
        };
        let record = self.chunk(chunk)?;
        record.class.set(u32::try_from(class).ok()? + 1);
        record.free.store(blocks(class), Ordering::Relaxed);
        lists.in_use += 1;
        self.list(chunk, &mut lists.with_room[class]);
        Some(chunk)
    }

    /// Gives the memory of up to `count` empty chunks back.
    fn release_empty(&self, lists: &mut Lists, count: u32) {
        for _ in 0..count.min(lists.empty_count) {
            let chunk = lists.empty;
            self.unlist(chunk, &mut lists.empty);
            let from = chunk as usize * CHUNK_WORDS;
            log_failure(self.words.release(from, from + CHUNK_WORDS));
            self.list(chunk, &mut lists.released);
            lists.empty_count -= 1;
        }
    }

    /// Makes the lists from the chunks' records.
    fn restore(&self, lists: &mut Lists) {
        *lists = Lists::default();
        for chunk in 1..=self.record().chunks.load(Ordering::Relaxed) {
            let Some(record) = self.chunk(chunk) else {
                return;
            };
            match (record.class(), record.taken()) {
                (Some(class), taken @ 1..) => {
                    let free = blocks(class).saturating_sub(taken);
                    record.free.store(free, Ordering::Relaxed);
                    lists.in_use += 1;
                    if free > 0 {
                        self.list(chunk, &mut lists.with_room[class]);
                    }
                }
                _ => {
                    self.list(chunk, &mut lists.empty);
                    lists.empty_count += 1;
                }
            }
        }
    }

    fn chunk(&self, chunk: u32) -> Option<&ChunkRecord> {
        self.chunks.get(chunk as usize)
    }

    /// Adds a chunk to a list.
    fn list(&self, chunk: u32, first: &mut u32) {
        let Some(record) = self.chunk(chunk) else {
            return;
        };
        record.previous.store(0, Ordering::Relaxed);
        record.next.store(*first, Ordering::Relaxed);
        if let Some(next) = self.chunk(*first).filter(|_| *first != 0) {
            next.previous.store(chunk, Ordering::Relaxed);
        }
        *first = chunk;
    }

    /// Removes a chunk from its list.
    fn unlist(&self, chunk: u32, first: &mut u32) {
        let Some(record) = self.chunk(chunk) else {
            return;
        };
        let previous = record.previous.load(Ordering::Relaxed);
        let next = record.next.load(Ordering::Relaxed);
        match self.chunk(previous).filter(|_| previous != 0) {
            Some(before) => before.next.store(next, Ordering::Relaxed),
            None => *first = next,
        }
        if let Some(behind) = self.chunk(next).filter(|_| next != 0) {
            behind.previous.store(previous, Ordering::Relaxed);
        }
    }
}

/// Copies bytes into words of a block, as far as both go.
pub fn write_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, part) in words.iter().zip(bytes.chunks(size_of::<u64>())) {
        let mut value = [0; size_of::<u64>()];
        value[..part.len()].copy_from_slice(part);
        word.set(u64::from_ne_bytes(value));
    }
}

/// Copies bytes out of words of a block, as far as both go.
pub fn read_bytes(words: &[AtomicU64], bytes: &mut [u8]) {
    for (word, part) in words.iter().zip(bytes.chunks_mut(size_of::<u64>())) {
        let value = word.load(Ordering::Relaxed).to_ne_bytes();
        part.copy_from_slice(&value[..part.len()]);
    }
}

#[cfg(test)]
mod tests;
