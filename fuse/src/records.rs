//! A counted list of equal records at the end of a message.

use core::fmt;
use core::marker::PhantomData;

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Records of type `T`, as many as were announced and have come; nothing is aligned and nothing
/// copied until read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Records<'a, T> {
    /// A whole number of `T`.
    bytes: &'a [u8],
    kind: PhantomData<T>,
}

impl<'a, T: FromBytes + IntoBytes + Immutable + Default> Records<'a, T> {
    /// For the sender.
    #[must_use]
    pub fn new(records: &'a [T]) -> Self {
        Self::from_bytes(records.as_bytes())
    }

    pub(crate) const fn from_bytes(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            kind: PhantomData,
        }
    }

    pub(crate) const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() / size_of::<T>()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The records, in the order sent.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = T> + Clone + use<'a, T> {
        // A chunk is exactly as long as the structure, so the default is never taken.
        self.bytes
            .chunks_exact(size_of::<T>())
            .map(|record| T::read_from_bytes(record).unwrap_or_default())
    }
}

impl<T: FromBytes + IntoBytes + Immutable + Default + fmt::Debug> fmt::Debug for Records<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ForgetOne;

    #[test]
    fn records_come_back_in_order_from_unaligned_bytes() {
        let nodes = [
            ForgetOne {
                nodeid: 2,
                nlookup: 1,
            },
            ForgetOne {
                nodeid: 3,
                nlookup: 9,
            },
        ];
        let mut bytes = vec![0xff];
        bytes.extend_from_slice(nodes.as_bytes());
        let records = Records::<ForgetOne>::from_bytes(&bytes[1..]);
        assert_eq!(records.len(), 2);
        assert!(records.iter().eq(nodes));
    }
}
