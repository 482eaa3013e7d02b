//! Finds records by a hash: an open-addressing table of their indices, in the arena.
//!
//! A place is 0 (empty), 1 (removed), or the upper half of a hash and an index above 1. Places are
//! probed one after another. Tables of all sizes lie behind each other, the one with 2^n places
//! from place 2^n on.
//!
//! Changes are made while [`TableRecord`] is marked, and after a death the index is built anew from
//! the records.

use std::sync::atomic::{AtomicU64, Ordering};

use super::arena::Part;
use super::change::Place;
use super::table::{TableRecord, log_failure};

const EMPTY: u64 = 0;
const REMOVED: u64 = 1;

/// Binary logarithm of the smallest table: its places fill an eighth of a page.
const FIRST_BITS: u32 = 6;

/// The index of one table.
#[derive(Debug)]
pub struct Index {
    table: Part<TableRecord>,
    places: Part<AtomicU64>,
}

impl Index {
    /// The index that is in these parts.
    pub fn new(table: Part<TableRecord>, places: Part<AtomicU64>) -> Self {
        Self { table, places }
    }

    /// The index of a record with this hash for which `is_it` holds.
    pub fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let places = self.current();
        for place in probe(places, hash) {
            match place.load(Ordering::Relaxed) {
                EMPTY => return None,
                value if has_hash(value, hash) => {
                    let index = index_in(value);
                    if is_it(index) {
                        return Some(index);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Adds a record that is not in the index. `records` is the number of records in it, and
    /// `hash_of` returns the hash of one of these.
    pub fn insert(
        &self,
        hash: u64,
        index: u32,
        records: usize,
        hash_of: impl Fn(u32) -> Option<u64>,
    ) {
        let used = self.table[0].index_used.load(Ordering::Relaxed);
        // A quarter stays empty, so that a search ends soon.
        if (used as usize + 1) * 4 > self.current().len() * 3 {
            self.resize(records + 1, hash_of);
        }
        self.put(self.current(), hash, index);
    }

    /// Removes a record, if it is there.
    pub fn remove(&self, hash: u64, index: u32) {
        let value = value(hash, index);
        for place in probe(self.current(), hash) {
            match place.load(Ordering::Relaxed) {
                EMPTY => return,
                found if found == value => return place.set(REMOVED),
                _ => {}
            }
        }
    }

    /// Makes the index smaller if most of it is empty. `records` is the number of records in it.
    /// Returns whether it was.
    pub fn shrink(&self, records: usize, hash_of: impl Fn(u32) -> Option<u64>) -> bool {
        let capacity = self.current().len();
        let is_large = capacity > 1 << FIRST_BITS && capacity / 16 > records;
        if is_large {
            self.resize(records, hash_of);
        }
        is_large
    }

    /// Builds the index anew from all records: their indices and hashes.
    pub fn rebuild(&self, records: usize, all: impl Iterator<Item = (u32, u64)>) {
        let bits = bits_for(records);
        let places = self.of_bits(bits);
        for place in places {
            place.set(EMPTY);
        }
        self.table[0].index_used.set(0);
        for (index, hash) in all {
            self.put(places, hash, index);
        }
        self.switch_to(bits);
    }

    fn resize(&self, records: usize, hash_of: impl Fn(u32) -> Option<u64>) {
        let values = self
            .current()
            .iter()
            .map(|place| place.load(Ordering::Relaxed));
        let indices: Vec<u32> = values
            .filter(|value| *value > REMOVED)
            .map(index_in)
            .collect();
        let all = indices.into_iter();
        self.rebuild(
            records,
            all.filter_map(|index| Some((index, hash_of(index)?))),
        );
    }

    fn switch_to(&self, bits: u32) {
        let current = &self.table[0].index_bits;
        let old = current.load(Ordering::Relaxed);
        current.set(bits);
        if old != bits && old >= FIRST_BITS && !self.of_bits(old).is_empty() {
            let given_back = self.places.release(1 << old, 2 << old);
            log_failure(given_back);
        }
    }

    /// Stores a value at the first free place.
    fn put(&self, places: &[AtomicU64], hash: u64, index: u32) {
        for place in probe(places, hash) {
            let found = place.load(Ordering::Relaxed);
            if found > REMOVED {
                continue;
            }
            if found == EMPTY {
                self.table[0].index_used.add(1);
            }
            return place.set(value(hash, index));
        }
    }

    fn current(&self) -> &[AtomicU64] {
        self.of_bits(self.table[0].index_bits.load(Ordering::Acquire))
    }

    /// The table with 2^`bits` places; none for 0.
    fn of_bits(&self, bits: u32) -> &[AtomicU64] {
        let places = match bits {
            0 => None,
            _ => 1_usize.checked_shl(bits),
        };
        let range = places.and_then(|places| Some(places..places.checked_mul(2)?));
        let places = range.and_then(|range| self.places.get(range));
        places.unwrap_or(&[])
    }
}

/// Binary logarithm of the places for this many records: from a third to two thirds are used.
fn bits_for(records: usize) -> u32 {
    let places = (records * 3 / 2).next_power_of_two();
    places.trailing_zeros().max(FIRST_BITS)
}

/// All places, from the one that the hash says on.
fn probe(places: &[AtomicU64], hash: u64) -> impl Iterator<Item = &AtomicU64> {
    // The number of places is a power of two, or zero.
    let mask = places.len().wrapping_sub(1);
    let start = usize::try_from(hash & u64::from(u32::MAX)).unwrap_or(0);
    (0..places.len()).map_while(move |step| places.get(start.wrapping_add(step) & mask))
}

fn value(hash: u64, index: u32) -> u64 {
    hash & !u64::from(u32::MAX) | u64::from(index + 2)
}

fn has_hash(value: u64, hash: u64) -> bool {
    value > REMOVED && value >> 32 == hash >> 32
}

fn index_in(value: u64) -> u32 {
    // Masked to 32 bits; an index has 24.
    u32::try_from(value & u64::from(u32::MAX)).map_or(0, |index| index.wrapping_sub(2))
}

#[cfg(test)]
mod tests {
    use super::super::arena::Arena;
    use super::*;

    fn index() -> Index {
        let arena = Arena::small();
        Index::new(arena.inode_table(0), arena.inode_index(0))
    }

    /// Few different hashes, so that places collide in all ways.
    fn hash(index: u32) -> u64 {
        u64::from(index % 7) << 32 | u64::from(index % 5)
    }

    #[test]
    fn what_was_added_is_found_until_it_is_removed() {
        let found = index();
        let mut present = std::collections::BTreeSet::new();
        for step in 0..20_000_u32 {
            let record = step.wrapping_mul(2_654_435_761) % 400;
            if present.remove(&record) {
                found.remove(hash(record), record);
                found.shrink(present.len(), |index| Some(hash(index)));
            } else {
                found.insert(hash(record), record, present.len(), |index| {
                    Some(hash(index))
                });
                present.insert(record);
            }
            let other = step % 400;
            let is_there = found.find(hash(other), |index| index == other).is_some();
            assert_eq!(
                is_there,
                present.contains(&other),
                "step {step}, record {other}"
            );
        }
    }

    #[test]
    fn the_index_grows_and_shrinks_with_what_is_in_it() {
        let index = index();
        let spread = |index: u32| u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for record in 0..4096 {
            index.insert(spread(record), record, record as usize, |index| {
                Some(spread(index))
            });
        }
        let places = index.current().len();
        assert_eq!(places, 8192);
        for record in 0..4096 {
            assert_eq!(
                index.find(spread(record), |index| index == record),
                Some(record)
            );
            index.remove(spread(record), record);
            index.shrink(4095 - record as usize, |index| Some(spread(index)));
        }
        assert_eq!(index.current().len(), 1 << FIRST_BITS);
    }

    #[test]
    fn an_index_of_a_damaged_size_finds_nothing_and_is_made_anew() {
        for bits in [1, 40, 63, 64, 200, u32::MAX] {
            let arena = Arena::small();
            let index = Index::new(arena.inode_table(0), arena.inode_index(0));
            index.insert(hash(1), 1, 0, |record| Some(hash(record)));
            arena.inode_table(0)[0]
                .index_bits
                .store(bits, Ordering::Relaxed);
            assert_eq!(index.find(hash(1), |_| true), None);
            index.insert(hash(2), 2, 1, |record| Some(hash(record)));
            let found = index.find(hash(2), |record| record == 2);
            assert!(found == Some(2) || bits == 1, "{bits}");
            index.remove(hash(2), 2);
            index.shrink(0, |record| Some(hash(record)));
            index.rebuild(1, [(3, hash(3))].into_iter());
            assert_eq!(index.find(hash(3), |record| record == 3), Some(3));
        }
    }

    #[test]
    fn an_index_is_rebuilt_from_all_records() {
        let index = index();
        index.rebuild(100, (0..100).map(|record| (record, hash(record))));
        for record in 0..100 {
            let found = index.find(hash(record), |index| index == record);
            assert_eq!(found, Some(record));
        }
    }
}
