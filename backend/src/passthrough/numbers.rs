//! Inode numbers as the guest sees them.
//!
//! Where mounts below the share are announced, the guest gives each a device number of its own and inode numbers pass
//! unchanged. Where they are not, the guest sees one file system, in which two files must not have one number. Then
//!
//! ```text
//!  63 62 61           48 47                    0
//!   0 ------------ number ---------------------    the share's own file system
//!   1  0 --- place ----- ------- number ---------  another place, a number below 2^48
//!   1  1 ------------- hash ---------------------  the rest: rare, and distinct as far as a hash is
//! ```

use std::hash::{BuildHasher, RandomState};

use super::places::{Identity, PlaceIndex};

/// Set in every number that is made here; file systems do not get that far, but for stacked ones.
const MADE: u64 = 1 << 63;

/// Set in the made numbers that are a hash.
const HASHED: u64 = 1 << 62;

/// Bits for the inode number in a made number that is not a hash.
const INO_BITS: u32 = 48;

/// Places whose numbers need no hash.
const PLACES: u32 = 1 << 14;

/// Makes numbers. Nothing is remembered: what a guest looks up must not cost memory for ever.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    hasher: RandomState,
}

impl Numbers {
    /// A number that no other inode of the share has, always the same for one inode.
    pub(super) fn distinct(&self, identity: Identity) -> u64 {
        let Identity { place, ino } = identity;
        if place == PlaceIndex::ROOT && ino & MADE == 0 {
            return ino;
        }
        if place != PlaceIndex::ROOT && place.0 < PLACES && ino >> INO_BITS == 0 {
            return MADE | u64::from(place.0) << INO_BITS | ino;
        }
        MADE | HASHED | self.hasher.hash_one(identity)
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
        let places = [0, 1, 2, PLACES - 1, PLACES, u32::MAX];
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
