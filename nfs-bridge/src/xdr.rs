//! XDR (RFC 4506): reads arguments out of a record, and appends results to a reply.
//!
//! Results are `nfs3_types`' structures, written by its `Pack`. Its `Unpack` is used only for
//! structures of fixed size: for an array it allocates the length that the peer claims before it
//! looks whether so many bytes are there. [`Reader`] borrows from the record instead, and allocates
//! nothing.

use nfs3_types::xdr_codec::{Pack, Unpack};

/// Why arguments are malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record ends within a value.
    #[error("the record ends within a value")]
    Short,
    /// An array is longer than the protocol allows.
    #[error("an array has {len} elements, where {limit} are allowed")]
    Length {
        /// The length that the peer claims.
        len: u32,
        /// The limit of the protocol.
        limit: usize,
    },
    /// A value is none of its type.
    #[error("a value is none of its type")]
    Value,
}

/// Reads values from the bytes of a record.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the beginning of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes that were not read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// An unsigned integer of 32 bits.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    /// An unsigned integer of 64 bits.
    ///
    /// # Errors
    /// [`DecodeError::Short`].
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(u64::from_be_bytes(*bytes))
    }

    /// A Boolean.
    ///
    /// # Errors
    /// [`DecodeError::Short`], or [`DecodeError::Value`] for other numbers than 0 and 1.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Value),
        }
    }

    /// Variable-length opaque data or a string of at most `limit` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Length`], [`DecodeError::Short`].
    pub fn opaque(&mut self, limit: usize) -> Result<&'a [u8], DecodeError> {
        let claimed = self.u32()?;
        let too_long = DecodeError::Length {
            len: claimed,
            limit,
        };
        let len = usize::try_from(claimed).map_err(|_| too_long)?;
        if len > limit {
            return Err(too_long);
        }
        let data = self.take(len)?;
        self.take(len.next_multiple_of(4) - len)?;
        Ok(data)
    }

    /// A structure of `nfs3_types` of fixed size: one without arrays.
    ///
    /// # Errors
    /// [`DecodeError::Value`], also if the record ends within it.
    pub fn structure<T: Unpack>(&mut self) -> Result<T, DecodeError> {
        let (value, _) = T::unpack(&mut self.rest).map_err(|_| DecodeError::Value)?;
        Ok(value)
    }
}

/// Appends `value` to a reply.
pub fn put(reply: &mut Vec<u8>, value: &impl Pack) {
    // Writing to a vector fails only for an array of 4 GiB, which no reply has.
    let _ = value.pack(reply);
}

/// Appends variable-length opaque data.
pub fn put_opaque(reply: &mut Vec<u8>, data: &[u8]) {
    put(reply, &u32::try_from(data.len()).unwrap_or(u32::MAX));
    reply.extend_from_slice(data);
    pad(reply, data.len());
}

/// Appends the zeros that follow `len` bytes of opaque data.
pub fn pad(reply: &mut Vec<u8>, len: usize) {
    reply.resize(reply.len() + padding(len), 0);
}

/// How many zeros follow `len` bytes of opaque data.
#[must_use]
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_array_is_bounded_before_it_is_read() {
        let mut reader = Reader::new(&[0xff; 8]);
        let error = reader.opaque(64).unwrap_err();
        let (len, limit) = (u32::MAX, 64);
        assert_eq!(error, DecodeError::Length { len, limit });
        let mut reader = Reader::new(&[0, 0, 0, 5, 1, 2, 3, 4, 5]);
        assert_eq!(reader.opaque(64), Err(DecodeError::Short), "no padding");
    }

    proptest! {
        #[test]
        fn what_is_appended_is_read(data: Vec<u8>, number: u64, word: u32) {
            let mut bytes = Vec::new();
            put(&mut bytes, &number);
            put_opaque(&mut bytes, &data);
            put(&mut bytes, &word);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.u64(), Ok(number));
            prop_assert_eq!(reader.opaque(data.len()), Ok(&*data));
            prop_assert_eq!(reader.u32(), Ok(word));
            prop_assert!(reader.rest().is_empty());
        }
    }
}
