//! A range of guest physical addresses.

use std::fmt;

/// At least one byte of guest physical addresses, not beyond the last address.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct GuestRange {
    start: u64,
    len: u64,
}

impl GuestRange {
    /// `len` bytes from `start`; `None` if `len` is 0 or the range goes beyond the last address.
    pub const fn new(start: u64, len: u64) -> Option<Self> {
        match len.checked_sub(1) {
            Some(beyond) if start.checked_add(beyond).is_some() => Some(Self { start, len }),
            _ => None,
        }
    }

    /// The first address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// Length in bytes, never 0.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub const fn len(self) -> u64 {
        self.len
    }

    /// The last address in it.
    pub const fn last(self) -> u64 {
        // `new` has checked that this neither wraps nor goes below the start.
        self.start.wrapping_add(self.len.wrapping_sub(1))
    }

    /// The offset of `address` from the start, if the address is in the range.
    pub const fn offset_of(self, address: u64) -> Option<u64> {
        match address.checked_sub(self.start) {
            Some(offset) if offset < self.len => Some(offset),
            _ => None,
        }
    }

    /// Whether all of `len` bytes from `address` are in it; false for 0 bytes.
    pub const fn contains(self, address: u64, len: u64) -> bool {
        match Self::new(address, len) {
            Some(inner) => self.start <= inner.start && inner.last() <= self.last(),
            None => false,
        }
    }

    /// Whether the two have an address in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.start, self.last())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn range_to_the_very_last_address_is_one() {
        let range = GuestRange::new(u64::MAX - 1, 2).unwrap();
        assert_eq!(range.last(), u64::MAX);
        assert!(range.contains(u64::MAX, 1));
        assert!(!range.contains(u64::MAX, 2));
        assert_eq!(GuestRange::new(u64::MAX, 2), None);
        assert_eq!(GuestRange::new(0, 0), None);
    }

    proptest! {
        #[test]
        fn contains_and_overlaps_agree_with_wide_arithmetic(
            start in any::<u64>(), len in any::<u64>(),
            address in any::<u64>(), inner in any::<u64>(),
        ) {
            let Some(range) = GuestRange::new(start, len) else {
                prop_assert!(len == 0 || u128::from(start) + u128::from(len) > 1 << 64);
                return Ok(());
            };
            let end = u128::from(start) + u128::from(len);
            let inner_end = u128::from(address) + u128::from(inner);
            let inside = inner > 0 && address >= start && inner_end <= end;
            prop_assert_eq!(range.contains(address, inner), inside);
            prop_assert_eq!(range.offset_of(address).is_some(), range.contains(address, 1));
            if let Some(other) = GuestRange::new(address, inner) {
                let apart = inner_end <= u128::from(start) || u128::from(address) >= end;
                prop_assert_eq!(range.overlaps(other), !apart);
            }
        }
    }
}
