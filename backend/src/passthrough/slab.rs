//! A table whose keys are never reused and which frees memory as it empties.
//!
//! The `slab` crate reuses keys and keeps its memory; the table of a guest that walks through a
//! large tree once must do neither.

use std::fmt;

/// Entries per chunk: the bits of a `u64`, so that one word tells which entries are used.
const CHUNK: usize = 64;

/// Bits of a key that hold the index; the others hold the generation.
const INDEX_BITS: u32 = 24;

/// Bits of a key in total. The upper four bits of a `u64` are left for the key's user.
pub(super) const KEY_BITS: u32 = 60;

/// The largest generation. A table that reaches it accepts no more entries.
const LAST_GENERATION: u64 = (1 << (KEY_BITS - INDEX_BITS)) - 1;

/// Limit of entries.
const CAPACITY: usize = 1 << INDEX_BITS;

/// The key of an entry: its index and the number of insertions before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key(u64);

impl Key {
    /// A key from an untrusted number, which may have no entry. `None` for more than [`KEY_BITS`]
    /// bits.
    pub(super) fn from_raw(raw: u64) -> Option<Self> {
        (raw >> KEY_BITS == 0).then_some(Self(raw))
    }

    /// The key as a number of [`KEY_BITS`] bits, at least 2^24.
    pub(super) fn raw(self) -> u64 {
        self.0
    }

    /// The entry's index, unique among the existing entries.
    pub(super) fn index(self) -> u32 {
        // Masked to 24 bits.
        u32::try_from(self.0 & (CAPACITY as u64 - 1)).unwrap_or(0)
    }

    fn position(self) -> (usize, usize) {
        let index = self.index() as usize;
        (index / CHUNK, index % CHUNK)
    }
}

/// The table is full: 2^24 entries exist, or 2^36 were inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl From<Full> for std::io::Error {
    fn from(_: Full) -> Self {
        Self::from_raw_os_error(libc::ENFILE)
    }
}

struct Chunk<T> {
    used: u64,
    slots: [Option<(Key, T)>; CHUNK],
}

impl<T> Chunk<T> {
    fn empty() -> Box<Self> {
        Box::new(Self {
            used: 0,
            slots: [const { None }; CHUNK],
        })
    }
}

/// The table. Entries do not move; chunks are allocated and freed.
pub(super) struct Slab<T> {
    chunks: Vec<Option<Box<Chunk<T>>>>,
    /// Chunks that may have unused entries, the best last; may include outdated chunks.
    room: Vec<u32>,
    /// An empty chunk, so that a table around a chunk boundary does not allocate each time.
    spare: Option<Box<Chunk<T>>>,
    made: u64,
    len: usize,
}

impl<T> fmt::Debug for Slab<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            room: Vec::new(),
            spare: Some(Chunk::empty()),
            made: 0,
            len: 0,
        }
    }
}

impl<T> Slab<T> {
    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds an entry.
    pub(super) fn insert(&mut self, value: T) -> Result<Key, Full> {
        if self.made >= LAST_GENERATION {
            return Err(Full);
        }
        let number = self.chunk_with_room()?;
        let chunk = self
            .chunks
            .get_mut(number)
            .and_then(Option::as_mut)
            .ok_or(Full)?;
        let slot = (!chunk.used).trailing_zeros();
        let entry = chunk.slots.get_mut(slot as usize).ok_or(Full)?;
        let key = Key(((self.made + 1) << INDEX_BITS) | (number * CHUNK) as u64 | u64::from(slot));
        *entry = Some((key, value));
        chunk.used |= 1 << slot;
        self.made += 1;
        self.len += 1;
        Ok(key)
    }

    /// The entry of a key.
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let (chunk, slot) = key.position();
        match self.chunks.get(chunk)?.as_ref()?.slots.get(slot)? {
            Some((found, value)) if *found == key => Some(value),
            _ => None,
        }
    }

    /// The entry of a key, mutable.
    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (chunk, slot) = key.position();
        match self.chunks.get_mut(chunk)?.as_mut()?.slots.get_mut(slot)? {
            Some((found, value)) if *found == key => Some(value),
            _ => None,
        }
    }

    /// The entry at an index, of any generation.
    pub(super) fn at(&self, index: u32) -> Option<(Key, &T)> {
        let index = index as usize;
        let slot = self
            .chunks
            .get(index / CHUNK)?
            .as_ref()?
            .slots
            .get(index % CHUNK)?;
        slot.as_ref().map(|(key, value)| (*key, value))
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let (number, slot) = key.position();
        let chunk_slot = self.chunks.get_mut(number)?;
        let chunk = chunk_slot.as_mut()?;
        let entry = chunk.slots.get_mut(slot)?;
        if !matches!(entry, Some((found, _)) if *found == key) {
            return None;
        }
        let (_, value) = entry.take()?;
        let was_full = chunk.used == u64::MAX;
        chunk.used &= !(1 << slot);
        self.len -= 1;
        if chunk.used == 0 {
            self.spare = chunk_slot.take();
            self.trim();
        } else if was_full {
            // Indices have 24 bits.
            self.room.push(u32::try_from(number).unwrap_or(u32::MAX));
        }
        Some(value)
    }

    /// All entries in the order of their indices, starting at `from`.
    pub(super) fn iter_from(&self, from: u32) -> impl Iterator<Item = (Key, &T)> {
        let from = from as usize;
        self.chunks
            .iter()
            .skip(from / CHUNK)
            .flatten()
            .flat_map(|chunk| chunk.slots.iter().flatten())
            .map(|(key, value)| (*key, value))
            .skip_while(move |(key, _)| (key.index() as usize) < from)
    }

    fn chunk_with_room(&mut self) -> Result<usize, Full> {
        while let Some(number) = self.room.last().map(|number| *number as usize) {
            match self.chunks.get(number) {
                Some(Some(chunk)) if chunk.used != u64::MAX => return Ok(number),
                _ => self.room.pop(),
            };
        }
        let number = match self.chunks.iter().position(Option::is_none) {
            Some(hole) if self.len < self.chunks.len() * CHUNK / 2 => hole,
            _ => self.chunks.len(),
        };
        if number >= CAPACITY / CHUNK {
            return Err(Full);
        }
        let chunk = Some(self.spare.take().unwrap_or_else(Chunk::empty));
        match self.chunks.get_mut(number) {
            Some(hole) => *hole = chunk,
            None => self.chunks.push(chunk),
        }
        self.room.push(u32::try_from(number).map_err(|_| Full)?);
        Ok(number)
    }

    /// Frees the table's own memory beyond the last chunk.
    fn trim(&mut self) {
        while let Some(None) = self.chunks.last() {
            self.chunks.pop();
        }
        if self.chunks.capacity() > 2 * self.chunks.len() + 16 {
            self.chunks.shrink_to(self.chunks.len() + 8);
            let chunks = &self.chunks;
            self.room
                .retain(|number| matches!(chunks.get(*number as usize), Some(Some(_))));
            self.room.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_finds_its_entry_and_no_later_one() {
        let mut slab = Slab::default();
        let first = slab.insert("first").expect("room");
        assert_eq!(slab.get(first), Some(&"first"));
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second").expect("room");
        assert_eq!(second.index(), first.index());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"second"));
    }

    #[test]
    fn foreign_numbers_find_nothing() {
        let mut slab = Slab::default();
        let key = slab.insert(()).expect("room");
        for raw in [
            0,
            1,
            key.raw() + 1,
            key.raw() + CHUNK as u64,
            (1 << KEY_BITS) - 1,
        ] {
            assert_eq!(
                Key::from_raw(raw).and_then(|key| slab.get(key)),
                None,
                "{raw}"
            );
        }
        assert_eq!(Key::from_raw(1 << KEY_BITS), None);
        assert_eq!(
            Key::from_raw(key.raw()).and_then(|key| slab.get(key)),
            Some(&())
        );
    }

    #[test]
    fn memory_comes_back_and_positions_are_used_again() {
        let mut slab = Slab::default();
        let mut keys: Vec<Key> = (0..100_000)
            .map(|n| slab.insert(n).expect("room"))
            .collect();
        let survivor = keys.swap_remove(50_000);
        for key in keys {
            assert!(slab.remove(key).is_some());
        }
        assert_eq!(slab.len(), 1);
        assert_eq!(slab.chunks.iter().flatten().count(), 1);
        let more: Vec<Key> = (0..CHUNK * 2)
            .map(|n| slab.insert(n).expect("room"))
            .collect();
        assert_eq!(slab.chunks.iter().flatten().count(), 3);
        assert_eq!(slab.remove(survivor), Some(50_000));
        for key in more {
            assert!(slab.remove(key).is_some());
        }
        assert!(slab.chunks.capacity() < 100 && slab.room.len() < 100);
    }

    #[test]
    fn iteration_begins_where_asked() {
        let mut slab = Slab::default();
        for n in 0..200u32 {
            slab.insert(n).expect("room");
        }
        let seen: Vec<u32> = slab.iter_from(130).map(|(_, n)| *n).collect();
        assert_eq!(seen, (130..200).collect::<Vec<_>>());
    }
}
