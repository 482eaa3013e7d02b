//! The ids of a guest that has migrated here, which another daemon chose.
//!
//! A guest keeps its node ids and handles when it migrates, and they may be any numbers below a
//! limit. The keys of this daemon's tables begin above that limit, so that one comparison tells
//! both apart. A table of places finds the key of a foreign id; the record that has the key has the
//! number of the place, which leads back.
//!
//! The places are filled while the guest arrives, before it runs, and stay until its session ends.
//! An id whose record is gone leads to a key that no record has. The limit is stored last, and
//! cleared first.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::arena::Part;
use super::table::log_failure;
use crate::sys::shared_memory::shared_struct;

shared_struct! {
    /// The beginning of a table of foreign ids.
    #[derive(Debug, Default)]
    pub struct ForeignRecord {
        /// Ids below are foreign; 0 if none are.
        limit: AtomicU64,
        /// Binary logarithm of the number of places.
        bits: AtomicU32,
        reserved: AtomicU32,
    }
}

shared_struct! {
    /// A place: an id, and the number of the record that it stands for.
    #[derive(Debug, Default)]
    pub struct ForeignId {
        id: AtomicU64,
        /// What this daemon uses; 0 if the place is empty.
        own: AtomicU64,
    }
}

/// Multiplier of the hash: 2^64 divided by the golden ratio. The ids are the operator's, not the
/// guest's, to choose.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The foreign ids of one kind.
#[derive(Debug, Clone)]
pub struct ForeignIds {
    record: Part<ForeignRecord>,
    places: Part<ForeignId>,
}

impl ForeignIds {
    /// The table in these parts.
    pub fn new((record, places): (Part<ForeignRecord>, Part<ForeignId>)) -> Self {
        Self { record, places }
    }

    /// Ids below are foreign.
    pub fn limit(&self) -> u64 {
        self.record[0].limit.load(Ordering::Relaxed)
    }

    /// The number by which this daemon knows an id: the id itself unless it is foreign. `None` for
    /// an unknown foreign id.
    pub fn own(&self, id: u64) -> Option<u64> {
        if id >= self.limit() {
            return Some(id);
        }
        let place = self.probe(id).find_map(|index| {
            let place = self.places.get(index)?;
            let own = place.own.load(Ordering::Relaxed);
            (own == 0 || place.id.load(Ordering::Relaxed) == id).then_some(own)
        });
        place.filter(|own| *own != 0)
    }

    /// The id in a place; `None` for place 0, which no id has.
    pub fn id_at(&self, place: u32) -> Option<u64> {
        let index = usize::try_from(place.checked_sub(1)?).ok()?;
        Some(self.places.get(index)?.id.load(Ordering::Relaxed))
    }

    /// Makes room for `count` ids. There must be none. Returns false if there is not as much room.
    pub fn begin(&self, count: usize) -> bool {
        let places = count.saturating_add(1).saturating_mul(2);
        let Some(places) = places.checked_next_power_of_two() else {
            return false;
        };
        if places > self.places.len() {
            return false;
        }
        self.record[0].bits.store(places.ilog2(), Ordering::Relaxed);
        true
    }

    /// Adds an id that is not there yet, which stands for `own`. Returns its place.
    pub fn add(&self, id: u64, own: u64) -> Option<u32> {
        let index = self.probe(id).find(|index| {
            let place = self.places.get(*index);
            place.is_some_and(|place| place.own.load(Ordering::Relaxed) == 0)
        })?;
        let place = self.places.get(index)?;
        place.id.store(id, Ordering::Relaxed);
        place.own.store(own, Ordering::Release);
        u32::try_from(index + 1).ok()
    }

    /// From now on, ids below `limit` are foreign.
    pub fn set_limit(&self, limit: u64) {
        self.record[0].limit.store(limit, Ordering::Release);
    }

    /// Forgets all ids.
    pub fn clear(&self) {
        let record = &self.record[0];
        record.limit.store(0, Ordering::Release);
        let used = 1_usize << record.bits.swap(0, Ordering::Relaxed).min(usize::BITS - 1);
        let used = used.min(self.places.len());
        // The first page is cleared place by place, and the memory of the others is given back.
        let page = rustix::param::page_size() / size_of::<ForeignId>();
        for place in self.places.iter().take(used.min(page)) {
            place.own.store(0, Ordering::Relaxed);
        }
        if used > page {
            log_failure(self.places.release(page, used));
        }
    }

    /// The places in which an id may be, in order.
    fn probe(&self, id: u64) -> impl Iterator<Item = usize> {
        let bits = self.record[0]
            .bits
            .load(Ordering::Relaxed)
            .min(u64::BITS - 1);
        let places = (1_usize << bits).min(self.places.len());
        let hash = id.wrapping_mul(MULTIPLIER);
        let first = if bits == 0 {
            0
        } else {
            hash >> (u64::BITS - bits)
        };
        let first = usize::try_from(first).unwrap_or(0);
        (0..places).map(move |step| (first + step) & (places - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::super::arena::Arena;
    use super::*;

    #[test]
    fn any_id_leads_to_its_own_number_and_back() {
        let ids = ForeignIds::new(Arena::small().foreign_nodes());
        assert_eq!(ids.own(7), Some(7), "no id is foreign at first");
        for round in 0..3_u64 {
            let foreign: Vec<u64> = (0..500).map(|n| n * n * (round + 3) + 2).collect();
            assert!(ids.begin(foreign.len()));
            ids.set_limit(u64::MAX - 1);
            for (own, id) in (1..).zip(&foreign) {
                let place = ids.add(*id, own).expect("room");
                assert_eq!(ids.id_at(place), Some(*id));
            }
            for (own, id) in (1..).zip(&foreign) {
                assert_eq!(ids.own(*id), Some(own));
            }
            assert_eq!(ids.own(1), None);
            assert_eq!(ids.own(u64::MAX - 1), Some(u64::MAX - 1));
            ids.clear();
            assert_eq!(ids.own(foreign[1]), Some(foreign[1]));
        }
        assert_eq!(ids.id_at(0), None);
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let ids = ForeignIds::new(Arena::small().foreign_nodes());
        assert!(!ids.begin(usize::MAX));
        assert!(ids.begin(0));
        ids.set_limit(10);
        assert_eq!(ids.own(3), None);
    }
}
