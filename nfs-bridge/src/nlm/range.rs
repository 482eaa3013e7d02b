//! Byte ranges, and the locks of one owner on one file.

/// The last byte that a lock can cover (`OFFSET_MAX` of Linux): "to the end of the file".
pub const LAST_BYTE: u64 = i64::MAX.cast_unsigned();

/// Bytes of a file. `first` is not above `last`, and `last` not above [`LAST_BYTE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    first: u64,
    last: u64,
}

impl Range {
    /// All bytes.
    pub const ALL: Self = Self {
        first: 0,
        last: LAST_BYTE,
    };

    /// The range of NLM's offset and length. A length of 0 means "to the end of the file".
    /// `None` if it goes beyond [`LAST_BYTE`].
    #[must_use]
    pub fn new(offset: u64, length: u64) -> Option<Self> {
        let last = match length {
            0 => LAST_BYTE,
            length => offset.checked_add(length - 1)?,
        };
        let is_valid = offset <= last && last <= LAST_BYTE;
        is_valid.then_some(Self {
            first: offset,
            last,
        })
    }

    /// The first byte.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The last byte.
    #[must_use]
    pub const fn last(self) -> u64 {
        self.last
    }

    /// NLM's length: 0 for "to the end of the file".
    #[must_use]
    pub const fn length(self) -> u64 {
        match self.last {
            LAST_BYTE => 0,
            last => last - self.first + 1,
        }
    }

    /// Whether a byte is in both.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The bytes in both.
    #[must_use]
    pub fn common(self, other: Self) -> Option<Self> {
        self.overlaps(other).then(|| Self {
            first: self.first.max(other.first),
            last: self.last.min(other.last),
        })
    }
}

/// A locked range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The bytes.
    pub range: Range,
    /// Whether nobody else may have a lock on them.
    pub exclusive: bool,
}

/// The locks of one owner on one file, as POSIX has them: a new lock replaces those below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Held>);

impl Ranges {
    /// The locked ranges, in ascending order. They do not overlap.
    pub fn iter(&self) -> impl Iterator<Item = Held> + '_ {
        self.0.iter().copied()
    }

    /// Their number.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is locked.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A lock that excludes one of another owner.
    #[must_use]
    pub fn conflict(&self, wanted: Held) -> Option<Held> {
        self.iter()
            .find(|held| held.range.overlaps(wanted.range) && (held.exclusive || wanted.exclusive))
    }

    /// Locks a range.
    pub fn lock(&mut self, lock: Held) {
        self.unlock(lock.range);
        self.0.push(lock);
        self.0.sort_unstable_by_key(|held| held.range.first);
        self.0.dedup_by(|next, before| {
            let continues = before.range.last + 1 == next.range.first;
            let merges = continues && before.exclusive == next.exclusive;
            if merges {
                before.range.last = next.range.last;
            }
            merges
        });
    }

    /// Unlocks a range.
    pub fn unlock(&mut self, range: Range) {
        let mut rest = Vec::with_capacity(self.0.len() + 1);
        for held in self.0.drain(..) {
            if !held.range.overlaps(range) {
                rest.push(held);
                continue;
            }
            let mut keep = |first, last| {
                let range = Range { first, last };
                rest.push(Held { range, ..held });
            };
            if held.range.first < range.first {
                keep(held.range.first, range.first - 1);
            }
            if held.range.last > range.last {
                keep(range.last + 1, held.range.last);
            }
        }
        self.0 = rest;
    }

    /// `range` in pieces of one kind each: locked as told, or not locked.
    #[must_use]
    pub fn pieces(&self, range: Range) -> Vec<(Range, Option<bool>)> {
        let mut pieces = Vec::new();
        let mut next = range.first;
        for held in &self.0 {
            let Some(common) = held.range.common(range) else {
                continue;
            };
            if next < common.first {
                let (first, last) = (next, common.first - 1);
                pieces.push((Range { first, last }, None));
            }
            pieces.push((common, Some(held.exclusive)));
            next = common.last + 1;
        }
        if next <= range.last {
            let (first, last) = (next, range.last);
            pieces.push((Range { first, last }, None));
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(offset: u64, length: u64) -> Range {
        Range::new(offset, length).unwrap()
    }

    #[test]
    fn ranges_end_at_the_last_byte_that_a_file_can_have() {
        assert_eq!(range(0, 0), Range::ALL);
        assert_eq!(range(LAST_BYTE, 1).length(), 0);
        assert_eq!(range(5, 3).length(), 3);
        assert_eq!(Range::new(LAST_BYTE, 2), None);
        assert_eq!(Range::new(u64::MAX, 0), None);
        assert_eq!(Range::new(1, u64::MAX), None);
        assert_eq!(Range::new(2, u64::MAX), None);
    }

    #[test]
    fn shared_locks_exclude_exclusive_ones_alone() {
        let mut ranges = Ranges::default();
        let held = |offset, length, exclusive| Held {
            range: range(offset, length),
            exclusive,
        };
        ranges.lock(held(10, 10, false));
        assert_eq!(ranges.conflict(held(0, 0, false)), None);
        assert!(ranges.conflict(held(19, 1, true)).is_some());
        assert_eq!(ranges.conflict(held(20, 1, true)), None);
    }

    proptest! {
        #[test]
        fn locks_are_what_each_byte_got_last(
            steps in prop::collection::vec((0_u64..40, 1_u64..20, 0_usize..3), 0..40),
            at in 0_u64..40, length in 1_u64..30,
        ) {
            let mut ranges = Ranges::default();
            let mut bytes = [None; 80];
            for (offset, length, what) in steps {
                let changed = range(offset, length);
                let lock = [None, Some(false), Some(true)][what];
                match lock {
                    Some(exclusive) => ranges.lock(Held { range: changed, exclusive }),
                    None => ranges.unlock(changed),
                }
                for byte in offset..offset + length {
                    bytes[usize::try_from(byte).unwrap()] = lock;
                }
            }
            let mut found = [None; 80];
            for held in ranges.iter() {
                for byte in held.range.first()..=held.range.last() {
                    found[usize::try_from(byte).unwrap()] = Some(held.exclusive);
                }
            }
            prop_assert_eq!(found, bytes);
            // Neighbours differ.
            let all: Vec<_> = ranges.iter().collect();
            for pair in all.windows(2) {
                prop_assert!(pair[0].range.last() < pair[1].range.first());
                let touch = pair[0].range.last() + 1 == pair[1].range.first();
                prop_assert!(!touch || pair[0].exclusive != pair[1].exclusive);
            }
            let mut next = at;
            for (piece, kind) in ranges.pieces(range(at, length)) {
                prop_assert_eq!(piece.first(), next);
                for byte in piece.first()..=piece.last() {
                    prop_assert_eq!(bytes[usize::try_from(byte).unwrap()], kind);
                }
                next = piece.last() + 1;
            }
            prop_assert_eq!(next, at + length);
        }
    }
}
