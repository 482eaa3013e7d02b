//! A table of records whose keys are never reused and which gives memory back as it empties.
//!
//! The records lie in the arena. What a worker holds for each of them, a descriptor for example, is
//! on its own heap, and gone with it: the next worker makes it anew from the record when it needs
//! it.
//!
//! ```text
//! arena    records   key, fields │ key, fields │ 0 │ ...       in chunks of 64
//!          used      a bit for each record
//! heap     chunks    what is held for each record of a chunk; none while the chunk is empty
//! ```
//!
//! A record exists while its key is not 0. To add one, its fields are stored, then the key, then
//! the bit. To remove one, the key is cleared first. So after a death, the keys are right, and the
//! bits follow from them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::arena::Part;
use super::change::Place;
use super::table::{Marked, TableRecord, log_failure};
use crate::sys::shared_memory::Shared;

/// Records per chunk: the bits of a `u64`.
pub const CHUNK: usize = 64;

/// Bits of a key that hold the index; the others hold the generation.
const INDEX_BITS: u32 = 24;

/// Bits of a key in total. The upper four bits of a `u64` are left for the key's user.
pub const KEY_BITS: u32 = 60;

/// The largest generation. A table that reaches it accepts no more records.
const LAST_GENERATION: u64 = (1 << (KEY_BITS - INDEX_BITS)) - 1;

/// Limit of records.
pub const CAPACITY: usize = 1 << INDEX_BITS;

/// Empty chunks whose memory is kept: 256 KiB of the largest records. Beyond that, and beyond a
/// quarter of the others, all of them are given back at once.
const MAX_EMPTY: usize = 64;

/// A record of a table.
pub trait Record: Shared {
    /// Where its key is; 0 while the record is unused.
    fn key(&self) -> &AtomicU64;
}

/// The key of a record: its index and the number of records that were added before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u64);

impl Key {
    /// A key from an untrusted number, which may have no record. `None` for more than [`KEY_BITS`]
    /// bits.
    pub fn from_raw(raw: u64) -> Option<Self> {
        (raw >> KEY_BITS == 0).then_some(Self(raw))
    }

    /// The key as a number of [`KEY_BITS`] bits, at least 2^24.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// The record's index, unique among those that exist.
    pub fn index(self) -> u32 {
        // Masked to 24 bits.
        u32::try_from(self.0 & (CAPACITY as u64 - 1)).unwrap_or(0)
    }
}

/// The table is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl From<Full> for std::io::Error {
    fn from(_: Full) -> Self {
        Self::from_raw_os_error(libc::ENFILE)
    }
}

/// What a worker holds for the records of one chunk.
type Held<H> = Box<[Option<H>; CHUNK]>;

/// The table.
#[derive(Debug)]
pub struct Slab<R, H> {
    table: Part<TableRecord>,
    records: Part<R>,
    used: Part<AtomicU64>,
    held: Vec<Option<Held<H>>>,
    /// Chunks that may have unused records, the best last; may include outdated ones.
    room: Vec<u32>,
    /// Chunks without records that have memory.
    empty: Vec<u32>,
    /// Chunks without records whose memory was given back.
    released: Vec<u32>,
    /// What an empty chunk held, so that a table around a chunk's end does not allocate each time.
    spare: Option<Held<H>>,
    len: usize,
}

impl<R: Record, H> Slab<R, H> {
    /// The table in these parts, with the records that are there.
    pub fn new(table: Part<TableRecord>, records: Part<R>, used: Part<AtomicU64>) -> Self {
        let mut slab = Self {
            table,
            records,
            used,
            held: Vec::new(),
            room: Vec::new(),
            empty: Vec::new(),
            released: Vec::new(),
            spare: None,
            len: 0,
        };
        slab.restore();
        slab
    }

    fn restore(&mut self) {
        let is_half_changed = self.table[0].is_changing();
        let chunks = self.chunks();
        for number in 0..chunks {
            if is_half_changed {
                self.used[number].set(self.used_by_keys(number));
            }
            let used = self.used_bits(number);
            self.len += used.count_ones() as usize;
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            match used {
                0 => self.empty.push(number),
                u64::MAX => {}
                _ => self.room.push(number),
            }
        }
        self.held.resize_with(chunks, || None);
        self.note_len();
    }

    /// The bits of a chunk according to its keys.
    fn used_by_keys(&self, number: usize) -> u64 {
        let first = number * CHUNK;
        let records = &self.records[first..first + CHUNK];
        let used = |record: &R| record.key().load(Ordering::Relaxed) != 0;
        let bits = records.iter().enumerate();
        bits.fold(0, |bits, (at, record)| bits | u64::from(used(record)) << at)
    }

    fn used_bits(&self, number: usize) -> u64 {
        let bits = self.used.get(number);
        bits.map_or(0, |bits| bits.load(Ordering::Relaxed))
    }

    /// Number of chunks that were ever used. They are numbered from 0 on.
    fn chunks(&self) -> usize {
        let chunks = self.table[0].chunks.load(Ordering::Relaxed) as usize;
        chunks.min(self.records.len() / CHUNK)
    }

    /// Nothing follows from the number in the arena, so a death in between leaves no harm.
    fn note_len(&self) {
        let records = &self.table[0].records;
        records.store(self.len as u64, Ordering::Relaxed);
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a record: `fill` stores its fields, and gets the key that it will have. `held` is what
    /// the worker holds for it, or `None`.
    ///
    /// # Errors
    /// The table is full.
    pub fn insert(
        &mut self,
        held: impl Into<Option<H>>,
        fill: impl FnOnce(&R, Key),
    ) -> Result<Key, Full> {
        let made = self.table[0].made.load(Ordering::Relaxed);
        if made >= LAST_GENERATION {
            return Err(Full);
        }
        let made = made + 1;
        let number = self.chunk_with_room()?;
        let used = self.used_bits(number);
        let at = used.trailing_ones() as usize;
        let index = number * CHUNK + at;
        let record = self.records.get(index).ok_or(Full)?;
        let chunk = self.held.get_mut(number).ok_or(Full)?;
        let spare = &mut self.spare;
        let chunk = chunk.get_or_insert_with(|| spare.take().unwrap_or_else(nothing_held));
        let place = chunk.get_mut(at).ok_or(Full)?;
        *place = held.into();
        let key = Key(made << INDEX_BITS | index as u64);
        fill(record, key);
        // A key is never used again, even if the worker dies before it stores this one.
        self.table[0].made.set(made);
        record.key().set(key.raw());
        if let Some(bits) = self.used.get(number) {
            bits.set(used | 1 << at);
        }
        self.len += 1;
        self.note_len();
        Ok(key)
    }

    /// The lowest number that no key had yet.
    pub fn next_raw(&self) -> u64 {
        let made = self.table[0].made.load(Ordering::Relaxed);
        made.min(LAST_GENERATION).saturating_add(1) << INDEX_BITS
    }

    /// Makes all further keys at least `limit`.
    ///
    /// # Errors
    /// There are no such keys.
    pub fn begin_above(&mut self, limit: u64) -> Result<(), Full> {
        let generation = limit >> INDEX_BITS;
        // Leaves room for as many records as before.
        if generation > LAST_GENERATION / 2 {
            return Err(Full);
        }
        self.table[0].made.fetch_max(generation, Ordering::Release);
        Ok(())
    }

    /// The record of a key.
    pub fn get(&self, key: Key) -> Option<&R> {
        let record = self.records.get(key.index() as usize)?;
        // 0 is no key that `Key::from_raw` permits to exist: generations begin at 1.
        (record.key().load(Ordering::Acquire) == key.raw() && key.raw() != 0).then_some(record)
    }

    /// What is held for the record of a key.
    pub fn held(&self, key: Key) -> Option<&H> {
        self.get(key)?;
        let (chunk, at) = position(key);
        self.held.get(chunk)?.as_ref()?.get(at)?.as_ref()
    }

    /// Where to keep what is held for the record of a key.
    pub fn held_mut(&mut self, key: Key) -> Option<&mut Option<H>> {
        self.get(key)?;
        let (chunk, at) = position(key);
        let chunk = self.held.get_mut(chunk)?;
        chunk.get_or_insert_with(nothing_held).get_mut(at)
    }

    /// The record at an index.
    pub fn at(&self, index: u32) -> Option<(Key, &R)> {
        let record = self.records.get(index as usize)?;
        let key = record.key().load(Ordering::Acquire);
        (key != 0).then_some((Key(key), record))
    }

    /// Removes a record, and returns what was held for it. `None` if there is no such record.
    pub fn remove(&mut self, key: Key) -> Option<Option<H>> {
        self.get(key)?.key().set(0);
        let (number, at) = position(key);
        let used = self.used_bits(number);
        let left = used & !(1 << at);
        if left != used {
            self.used.get(number)?.set(left);
            self.len -= 1;
            self.note_len();
        }
        let chunk = self.held.get_mut(number)?;
        let held = chunk.as_mut().and_then(|chunk| chunk.get_mut(at)?.take());
        // Indices have 24 bits.
        let chunk_number = u32::try_from(number).unwrap_or(u32::MAX);
        // In a damaged state, the record may not have been among the used ones.
        if left == used {
            return Some(held);
        }
        if left == 0 {
            self.spare = chunk.take().or_else(|| self.spare.take());
            self.empty.push(chunk_number);
        } else if used == u64::MAX {
            self.room.push(chunk_number);
        }
        Some(held)
    }

    /// Gives the memory of empty chunks back if there is much of it.
    pub fn trim(&mut self) {
        let in_use = self.chunks() - self.empty.len() - self.released.len();
        if self.empty.len() <= MAX_EMPTY.max(in_use / 4) {
            return;
        }
        self.empty.sort_unstable();
        for run in self.empty.chunk_by(|one, next| one + 1 == *next) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                let (first, last) = (*first as usize, *last as usize);
                log_failure(self.records.release(first * CHUNK, (last + 1) * CHUNK));
            }
        }
        self.released.append(&mut self.empty);
        self.empty.shrink_to_fit();
        let used = &self.used;
        self.room.retain(|number| {
            let bits = used.get(*number as usize);
            bits.is_some_and(|bits| !matches!(bits.load(Ordering::Relaxed), 0 | u64::MAX))
        });
        self.room.shrink_to_fit();
        self.spare = None;
    }

    /// All records in the order of their indices, starting at `from`.
    pub fn iter_from(&self, from: u32) -> impl Iterator<Item = (Key, &R)> {
        let from = from as usize;
        (from / CHUNK..self.chunks())
            .filter(|number| self.used_bits(*number) != 0)
            .flat_map(|number| number * CHUNK..(number + 1) * CHUNK)
            .skip_while(move |index| *index < from)
            .filter_map(|index| self.at(u32::try_from(index).ok()?))
    }

    fn chunk_with_room(&mut self) -> Result<usize, Full> {
        while let Some(number) = self.room.last().map(|number| *number as usize) {
            match self.used_bits(number) {
                // One of the empty ones may be among them.
                0 | u64::MAX => self.room.pop(),
                _ => return Ok(number),
            };
        }
        let number = match self.empty.pop().or_else(|| self.released.pop()) {
            Some(number) => number as usize,
            None => self.new_chunk()?,
        };
        self.room.push(u32::try_from(number).map_err(|_| Full)?);
        Ok(number)
    }

    fn new_chunk(&mut self) -> Result<usize, Full> {
        let number = self.chunks();
        if number >= self.records.len() / CHUNK {
            return Err(Full);
        }
        let chunks = u32::try_from(number + 1).map_err(|_| Full)?;
        // Before any of its records, so that all records are found again.
        self.table[0].chunks.set(chunks);
        self.held.push(None);
        Ok(number)
    }
}

impl<R, H> Marked for Slab<R, H> {
    fn mark(&self) -> &TableRecord {
        &self.table[0]
    }
}

fn nothing_held<H>() -> Held<H> {
    Box::new([const { None }; CHUNK])
}

fn position(key: Key) -> (usize, usize) {
    let index = key.index() as usize;
    (index / CHUNK, index % CHUNK)
}

#[cfg(test)]
mod tests;
