//! Reading the arguments of a message front to back, never past their end.

use core::ffi::CStr;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::{DecodeError, Records};

/// Everything variable on the wire is padded to this many bytes (`FUSE_REC_ALIGN`).
pub(crate) const RECORD_ALIGN: usize = 8;

/// `length` rounded up to the next record boundary; saturates instead of overflowing.
pub(crate) fn record_align(length: usize) -> usize {
    length.saturating_add(RECORD_ALIGN - 1) & !(RECORD_ALIGN - 1)
}

/// The bytes of a message not read yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    /// Opcode or structure being decoded, for errors.
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    /// A structure of fixed size, copied out: nothing on the wire is aligned.
    pub(crate) fn fixed<T: FromBytes>(&mut self) -> Result<T, DecodeError> {
        let bytes = self.bytes(size_of::<T>())?;
        T::read_from_bytes(bytes).map_err(|_| self.too_short(size_of::<T>()))
    }

    /// A structure that older peers send shortened to no less than `least` bytes: what is missing
    /// reads as zero. Everything left is consumed, since newer peers may send more than is known
    /// here.
    pub(crate) fn extensible<T: FromZeros + FromBytes + IntoBytes>(
        &mut self,
        least: usize,
    ) -> Result<T, DecodeError> {
        if self.rest.len() < least {
            return Err(self.too_short(least));
        }
        let mut value = T::new_zeroed();
        for (to, from) in value.as_mut_bytes().iter_mut().zip(self.rest) {
            *to = *from;
        }
        self.rest = &[];
        Ok(value)
    }

    /// A NUL-terminated name.
    pub(crate) fn name(&mut self) -> Result<&'a CStr, DecodeError> {
        let unterminated = DecodeError::Unterminated {
            what: self.what,
            present: self.rest.len(),
        };
        let name = CStr::from_bytes_until_nul(self.rest).map_err(|_| unterminated)?;
        self.bytes(name.count_bytes().saturating_add(1))?;
        Ok(name)
    }

    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| self.too_short(count))?;
        self.rest = rest;
        Ok(taken)
    }

    /// `count` records of `T`.
    pub(crate) fn records<T>(&mut self, count: u32) -> Result<Records<'a, T>, DecodeError>
    where
        T: FromBytes + IntoBytes + Immutable + Default,
    {
        let present = self.rest.len() / size_of::<T>().max(1);
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        if wanted > present {
            return Err(DecodeError::Count {
                what: self.what,
                count: u64::from(count),
                present: present as u64,
            });
        }
        self.bytes(wanted.saturating_mul(size_of::<T>()))
            .map(Records::from_bytes)
    }

    /// Skips padding up to the next record boundary, `read` bytes having been read since the last.
    /// The padding may be missing at the very end.
    pub(crate) fn skip_padding(&mut self, read: usize) {
        let padding = record_align(read).saturating_sub(read).min(self.rest.len());
        self.rest = self.rest.get(padding..).unwrap_or_default();
    }

    /// All bytes left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            surplus => Err(DecodeError::Trailing {
                what: self.what,
                surplus,
            }),
        }
    }

    fn too_short(&self, wanted: usize) -> DecodeError {
        DecodeError::TooShort {
            what: self.what,
            wanted,
            present: self.rest.len(),
        }
    }
}
