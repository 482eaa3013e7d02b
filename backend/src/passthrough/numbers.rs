//! Inode numbers as the guest sees them.
//!
//! Where mounts below the share are announced, the guest gives each a device number of its own and inode numbers pass
//! unchanged. Where they are not, the guest sees one file system, in which two files must not have one number: those
//! of other mounts then get the mount's position in their upper bits.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::places::{Identity, PlaceIndex};

/// Set in every number that is made here; file systems do not get that far.
const MADE: u64 = 1 << 63;

/// Bits for the inode number in a made number.
const INO_BITS: u32 = 48;

/// Above the last place that fits a made number: numbers counted up as they are needed.
const COUNTED: u64 = 0x7fff;

/// The numbers made up one by one, for the rare inodes whose own number leaves no room for the place.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    counted: Mutex<HashMap<Identity, u64>>,
}

impl Numbers {
    /// A number that no other inode of the share has, always the same for one inode.
    pub(super) fn distinct(&self, identity: Identity) -> u64 {
        let Identity { place, ino } = identity;
        if place == PlaceIndex::ROOT && ino & MADE == 0 {
            return ino;
        }
        if ino >> INO_BITS == 0 && u64::from(place.0) < COUNTED && place != PlaceIndex::ROOT {
            return MADE | u64::from(place.0) << INO_BITS | ino;
        }
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let next = counted.len() as u64;
        let number = *counted.entry(identity).or_insert(next);
        MADE | COUNTED << INO_BITS | number
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_are_distinct_and_stay() {
        let numbers = Numbers::default();
        let mut seen = HashSet::new();
        let inos = [1, 2, (1 << 48) - 1, 1 << 48, 1 << 62, 1 << 63, u64::MAX];
        let places = [0, 1, 2, 0x7ffe, 0x7fff, 0x8000, u32::MAX];
        let all = || {
            places.iter().flat_map(|place| {
                inos.iter().map(|ino| Identity {
                    place: PlaceIndex(*place),
                    ino: *ino,
                })
            })
        };
        for identity in all() {
            assert!(seen.insert(numbers.distinct(identity)), "{identity:?}");
        }
        assert!(all().all(|identity| !seen.insert(numbers.distinct(identity))));
    }

    #[test]
    fn the_roots_own_file_system_keeps_its_numbers() {
        let identity = Identity {
            place: PlaceIndex::ROOT,
            ino: 12,
        };
        assert_eq!(Numbers::default().distinct(identity), 12);
    }
}
