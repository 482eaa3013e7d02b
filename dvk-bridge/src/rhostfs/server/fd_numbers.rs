//! Which numbers clients give to what they have open: none that a client has kept means what another's does.
//!
//! A client can lose all that it has open without knowing: its node lost a connection, this program was started again, another
//! process took its endpoint for a while. It goes on with its old numbers then. They mean nothing any more as long as every
//! client's numbers begin elsewhere, and after a start anywhere.

use std::sync::atomic::{AtomicU32, Ordering};

/// Bits of a number: none is negative.
const BITS: u32 = 31;

/// Most bits that count one client's files.
const MAX_INDEX_BITS: u32 = 20;

/// Where clients' numbers begin.
#[derive(Debug)]
pub(super) struct FdNumbers {
    /// Bits that count one client's files. The others tell clients apart.
    index_bits: u32,
    next: AtomicU32,
}

/// One client's numbers of open files: so many from the first on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct FdRange {
    first: i32,
    count: usize,
}

impl FdNumbers {
    /// For clients with up to `files` open files, of which more than a million count as that.
    pub(super) fn new(files: usize) -> Self {
        let last = files.saturating_sub(1);
        Self {
            index_bits: (usize::BITS - last.leading_zeros()).min(MAX_INDEX_BITS),
            next: AtomicU32::new(random_number()),
        }
    }

    /// The numbers of the next client.
    pub(super) fn range(&self) -> FdRange {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let first = next.wrapping_shl(self.index_bits) & i32::MAX.cast_unsigned();
        FdRange {
            first: first.cast_signed(),
            count: 1 << self.index_bits,
        }
    }
}

impl FdRange {
    /// The number of the file at `index`, if there are so many.
    pub(super) fn number(self, index: usize) -> Option<i32> {
        let index = i32::try_from(index).ok().filter(|_| index < self.count)?;
        self.first.checked_add(index)
    }

    /// The index of the file that has `number`, if it is one of these.
    pub(super) fn index(self, number: i32) -> Option<usize> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok();
        index.filter(|index| *index < self.count)
    }
}

/// A random number of [`BITS`] bits, or the process id if the kernel has no random numbers.
pub(super) fn random_number() -> u32 {
    getrandom::u32().unwrap_or_else(|_| std::process::id()) >> (u32::BITS - BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_two_clients() {
        let numbers = FdNumbers::new(16_384);
        let ranges: Vec<_> = (0..200).map(|_| numbers.range()).collect();
        for (at, range) in ranges.iter().enumerate() {
            for index in [0, 1, 16_383] {
                let number = range.number(index).unwrap();
                assert!(number >= 0);
                let owners = ranges.iter().filter(|it| it.index(number).is_some());
                assert_eq!(owners.count(), 1, "{number} of client {at}");
                assert_eq!(range.index(number), Some(index));
            }
            assert_eq!(range.number(16_384), None);
            assert_eq!(range.index(-1), None);
        }
    }

    #[test]
    fn every_limit_has_its_numbers() {
        for files in [0, 1, 2, 3, 16_384, 1 << 20, usize::MAX] {
            let range = FdNumbers::new(files).range();
            let last = files.clamp(1, 1 << 20) - 1;
            let number = range.number(last).expect("there are as many as allowed");
            assert_eq!(range.index(number), Some(last));
        }
    }

    #[test]
    fn a_server_that_starts_again_begins_elsewhere() {
        let starts: Vec<_> = (0..20).map(|_| FdNumbers::new(16_384).range()).collect();
        let same = starts.iter().filter(|range| Some(*range) == starts.first());
        assert!(same.count() < 3, "{starts:?}");
    }
}
