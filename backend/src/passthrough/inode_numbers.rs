//! Inode numbers as the guest sees them.
//!
//! If mounts below the share are announced, the guest assigns a device number to each and the
//! host's inode numbers pass unchanged. Otherwise the guest sees a single file system, in which two
//! files must not have the same number:
//!
//! ```text
//!  63 62 61           48 47                    0
//!   0 ----------- inode number ----------------    the share's own file system
//!   1  0 --- mount ----- ---- inode number -----   another mount, a number below 2^48
//!   1  1 ------------- hash --------------------   all others: rare, distinct up to collisions
//! ```

use std::fmt;
use std::hash::{BuildHasher, Hasher};

use foldhash::quality::FixedState;

use super::mounts::MountIndex;

/// Set in each number that is computed here. Only stacked file systems use this bit themselves.
const SYNTHETIC: u64 = 1 << 63;

/// Set in computed numbers that are a hash.
const HASHED: u64 = 1 << 62;

/// Bits of the inode number in a computed number that is not a hash.
const INO_BITS: u32 = 48;

/// Number of mounts whose index fits a computed number (bits 48 to 61).
const MAX_MOUNTS: u32 = 1 << 14;

/// Computes inode numbers. It keeps no state per inode, so a guest's lookups cost no memory.
pub(super) struct InodeNumbers {
    hasher: FixedState,
}

impl fmt::Debug for InodeNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the seed, which is a secret.
        f.debug_struct("InodeNumbers").finish_non_exhaustive()
    }
}

impl InodeNumbers {
    /// The numbers that `seed` gives: the same for each worker of a guest.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            hasher: FixedState::with_seed(seed),
        }
    }

    /// The inode number for the guest: the same for each use of an inode, and distinct within the
    /// share.
    pub(super) fn guest_ino(&self, mount: MountIndex, ino: u64) -> u64 {
        if mount == MountIndex::ROOT && ino & SYNTHETIC == 0 {
            return ino;
        }
        if mount != MountIndex::ROOT && mount.0 < MAX_MOUNTS && ino >> INO_BITS == 0 {
            return SYNTHETIC | u64::from(mount.0) << INO_BITS | ino;
        }
        let mut state = self.hasher.build_hasher();
        state.write_u32(mount.0);
        state.write_u64(ino);
        SYNTHETIC | HASHED | state.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_are_distinct_and_stay() {
        let numbers = InodeNumbers::new(1);
        let mut seen = HashSet::new();
        let inos = [1, 2, (1 << 48) - 1, 1 << 48, 1 << 62, 1 << 63, u64::MAX];
        let mounts = [0, 1, 2, MAX_MOUNTS - 1, MAX_MOUNTS, u32::MAX];
        let all = || {
            mounts
                .iter()
                .flat_map(|mount| inos.iter().map(|ino| (MountIndex(*mount), *ino)))
        };
        for (mount, ino) in all() {
            let number = numbers.guest_ino(mount, ino);
            assert!(seen.insert(number), "{mount:?} {ino}");
        }
        assert!(all().all(|(mount, ino)| !seen.insert(numbers.guest_ino(mount, ino))));
    }

    #[test]
    fn the_next_worker_computes_the_same_numbers() {
        let (first, next, other) = (1, 1, 2);
        let numbers = |seed| {
            let numbers = InodeNumbers::new(seed);
            [0, 5, MAX_MOUNTS].map(|mount| numbers.guest_ino(MountIndex(mount), 1 << 63))
        };
        assert_eq!(numbers(first), numbers(next));
        // A guest cannot know them in advance.
        assert_ne!(numbers(first), numbers(other));
    }

    #[test]
    fn the_roots_own_file_system_keeps_its_numbers() {
        let number = InodeNumbers::new(1).guest_ino(MountIndex::ROOT, 12);
        assert_eq!(number, 12);
    }
}
