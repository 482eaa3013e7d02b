//! The numbers of clients' open files. No number of one client is valid for another.
//!
//! A client can lose its open files without noticing: its node lost a connection, this program was
//! restarted, or another process had its endpoint for a while. It then uses its old numbers. They
//! are invalid, because the numbers of every client start elsewhere, and at random after a start.

use std::sync::atomic::{AtomicU32, Ordering};

/// Bits of a number. It is never negative.
const NUMBER_BITS: u32 = 31;

/// Bits of the index of a client's file at most.
const MAX_INDEX_BITS: u32 = 20;

/// Hands out the number ranges.
#[derive(Debug)]
pub(super) struct FdNumbers {
    /// Bits of the index of a client's file. The other bits identify the client.
    index_bits: u32,
    next: AtomicU32,
}

/// The numbers of one client's open files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct FdRange {
    first: i32,
    count: usize,
}

impl FdNumbers {
    /// Ranges for clients with up to `files` open files, at most 2^20.
    pub(super) fn new(files: usize) -> Self {
        let last = files.saturating_sub(1);
        Self {
            index_bits: (usize::BITS - last.leading_zeros()).min(MAX_INDEX_BITS),
            next: AtomicU32::new(random_number()),
        }
    }

    /// The range of the next client.
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
    /// The number of the file at `index`, if the range is that long.
    pub(super) fn number(self, index: usize) -> Option<i32> {
        let index = i32::try_from(index).ok().filter(|_| index < self.count)?;
        self.first.checked_add(index)
    }

    /// The index of the file with `number`, if the number is in the range.
    pub(super) fn index(self, number: i32) -> Option<usize> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok();
        index.filter(|index| *index < self.count)
    }
}

/// A random number of [`NUMBER_BITS`] bits, or the process id if the kernel has no random numbers.
pub(super) fn random_number() -> u32 {
    getrandom::u32().unwrap_or_else(|_| std::process::id()) >> (u32::BITS - NUMBER_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_do_not_share_numbers() {
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
            let number = range.number(last).expect("the limit is not reached");
            assert_eq!(range.index(number), Some(last));
        }
    }

    #[test]
    fn a_restarted_server_starts_at_another_number() {
        let starts: Vec<_> = (0..20).map(|_| FdNumbers::new(16_384).range()).collect();
        let same = starts.iter().filter(|range| Some(*range) == starts.first());
        assert!(same.count() < 3, "{starts:?}");
    }
}
