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

use super::mounts::{Identity, MountIndex};

/// Set in every number that is made here; file systems do not get that far, but for stacked ones.
const SYNTHETIC: u64 = 1 << 63;

/// Set in the made numbers that are a hash.
const HASHED: u64 = 1 << 62;

/// Bits for the inode number in a made number that is not a hash.
const INO_BITS: u32 = 48;

/// Mounts whose numbers need no hash.
const MAX_MOUNTS: u32 = 1 << 14;

/// Makes numbers. Nothing is remembered: what a guest looks up must not cost memory for ever.
#[derive(Debug, Default)]
pub(super) struct InodeNumbers {
    hasher: RandomState,
}

impl InodeNumbers {
    /// A number that no other inode of the share has, always the same for one inode.
    pub(super) fn guest_ino(&self, identity: Identity) -> u64 {
        let Identity { mount, ino } = identity;
        if mount == MountIndex::ROOT && ino & SYNTHETIC == 0 {
            return ino;
        }
        if mount != MountIndex::ROOT && mount.0 < MAX_MOUNTS && ino >> INO_BITS == 0 {
            return SYNTHETIC | u64::from(mount.0) << INO_BITS | ino;
        }
        SYNTHETIC | HASHED | self.hasher.hash_one(identity)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_are_distinct_and_stay() {
        let numbers = InodeNumbers::default();
        let mut seen = HashSet::new();
        let inos = [1, 2, (1 << 48) - 1, 1 << 48, 1 << 62, 1 << 63, u64::MAX];
        let mounts = [0, 1, 2, MAX_MOUNTS - 1, MAX_MOUNTS, u32::MAX];
        let all = || {
            mounts.iter().flat_map(|mount| {
                inos.iter().map(|ino| Identity {
                    mount: MountIndex(*mount),
                    ino: *ino,
                })
            })
        };
        for identity in all() {
            assert!(seen.insert(numbers.guest_ino(identity)), "{identity:?}");
        }
        assert!(all().all(|identity| !seen.insert(numbers.guest_ino(identity))));
    }

    #[test]
    fn the_roots_own_file_system_keeps_its_numbers() {
        let identity = Identity {
            mount: MountIndex::ROOT,
            ino: 12,
        };
        assert_eq!(InodeNumbers::default().guest_ino(identity), 12);
    }
}
