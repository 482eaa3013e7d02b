//! Reading the memory of a request.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::{FromBytes, IntoBytes};

use super::{Cursor, byte_count, segment_count};
use crate::sys::volatile::copy_from_guest;

/// The readable part of a request: bytes from the guest.
pub struct Reader<'a>(pub(super) Cursor<'a>);

impl Reader<'_> {
    /// Number of bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Copies up to `buffer.len()` bytes out and returns their number.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < buffer.len() {
            let Some(first) = self.0.rest.first() else {
                break;
            };
            let chunk = first.iov_len.min(buffer.len() - filled);
            let target = buffer[filled..filled + chunk].as_mut_ptr();
            // SAFETY: the caller of `Segments::reader` keeps the segment mapped; `target` has room
            // for `chunk` bytes and, as a Rust buffer, does not overlap guest memory.
            unsafe { copy_from_guest(first.iov_base.cast::<u8>(), target, chunk) };
            filled += chunk;
            self.0.advance(chunk);
        }
        filled
    }

    /// Copies up to `buffer.len()` bytes out like [`Self::read`], which reads them again.
    pub fn peek(&self, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        for segment in self.0.rest.iter() {
            let chunk = segment.iov_len.min(buffer.len() - filled);
            let target = buffer[filled..filled + chunk].as_mut_ptr();
            // SAFETY: as in `read`.
            unsafe { copy_from_guest(segment.iov_base.cast::<u8>(), target, chunk) };
            filled += chunk;
        }
        filled
    }

    /// Copies a plain value out. Returns `None` if too few bytes are left; some of them may then be
    /// consumed.
    pub fn read_value<T: FromBytes + IntoBytes>(&mut self) -> Option<T> {
        if self.0.remaining < size_of::<T>() {
            return None;
        }
        // A value is rarely split, and this copy has a constant length.
        let mut value = T::new_zeroed();
        if let Some(base) = self.0.contiguous(size_of::<T>()) {
            let target = value.as_mut_bytes().as_mut_ptr();
            // SAFETY: the caller of `Segments::reader` keeps the segment mapped, and it holds as
            // many bytes as the value.
            unsafe { copy_from_guest(base, target, size_of::<T>()) };
            self.0.advance(size_of::<T>());
            return Some(value);
        }
        (self.read(value.as_mut_bytes()) == size_of::<T>()).then_some(value)
    }

    /// Writes the next bytes, at most `count`, to `file` at `offset` by one `pwritev2` with `flags`
    /// (`RWF_*`). Returns how many were written, which may be fewer.
    ///
    /// # Errors
    /// Those of `pwritev2(2)`. EFAULT if the memory was truncated.
    pub fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        count: usize,
        offset: u64,
        flags: i32,
    ) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        if self.0.is_copied {
            return self.write_copy_to(file, count, offset, flags);
        }
        self.0.vectored(count, |segments, used| {
            // SAFETY: `segments` points to `used` segments, which the caller of `Segments::reader`
            // keeps mapped; the kernel returns EFAULT if it cannot read them.
            byte_count(unsafe {
                libc::pwritev2(
                    file.as_raw_fd(),
                    segments,
                    segment_count(used),
                    offset,
                    flags,
                )
            })
        })
    }
}
