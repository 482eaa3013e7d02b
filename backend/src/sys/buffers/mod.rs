//! The scattered memory of a request, and transfers between it and files.
//!
//! The segments usually lie in guest memory, which the guest can change at any time. So they are
//! raw addresses and never Rust references: bytes are copied out once, by volatile accesses, and
//! only the copy is used.
#![allow(unsafe_code)] // the only module that accesses guest memory by raw addresses

mod copied;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io;

pub use reader::Reader;
pub use writer::{Reserved, Writer};

/// The kernel's limit of segments per vectored call (`UIO_MAXIOV`, `linux/uio.h`).
const MAX_SEGMENTS_PER_CALL: usize = 1024;

/// A growable list of memory segments. Adjacent segments are merged. [`Segments::clear`] keeps the
/// allocation.
#[derive(Default)]
pub struct Segments {
    list: Vec<libc::iovec>,
    total: usize,
    is_copied: bool,
}

// SAFETY: the list holds addresses, not references; the caller that creates a `Reader` or `Writer`
// guarantees that the memory is mapped, on any thread.
unsafe impl Send for Segments {}

impl Segments {
    /// An empty list with capacity for `capacity` segments.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            list: Vec::with_capacity(capacity),
            total: 0,
            is_copied: false,
        }
    }

    /// Appends `len` bytes at `base`; extends the previous segment if they are adjacent. Returns
    /// false and appends nothing if the total would exceed `isize`.
    pub fn push(&mut self, base: *mut u8, len: usize) -> bool {
        let Some(total) = self
            .total
            .checked_add(len)
            .filter(|t| *t <= isize::MAX as usize)
        else {
            return false;
        };
        if len == 0 {
            return true;
        }
        self.total = total;
        match self.list.last_mut() {
            Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == base => {
                last.iov_len += len;
            }
            _ => self.list.push(libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            }),
        }
        true
    }

    /// Appends a local buffer, for tests and for callers that serve a request from their own
    /// memory.
    pub fn push_slice(&mut self, buffer: &mut [u8]) -> bool {
        self.push(buffer.as_mut_ptr(), buffer.len())
    }

    /// Chooses whether transfers between files and the segments go through memory of this process.
    ///
    /// The kernel then never waits for a page of the segments while it holds a lock of the file.
    pub fn set_copied(&mut self, is_copied: bool) {
        self.is_copied = is_copied;
    }

    /// Empties the list and keeps its allocation.
    pub fn clear(&mut self) {
        self.list.clear();
        self.total = 0;
    }

    /// Total number of bytes.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Number of segments after merging.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// Reads from the segments, starting at the first byte.
    ///
    /// # Safety
    /// Each segment must be mapped and readable for the lifetime of the reader.
    pub unsafe fn reader(&mut self) -> Reader<'_> {
        Reader(self.cursor())
    }

    /// Writes to the segments, starting at the first byte.
    ///
    /// # Safety
    /// Each segment must be mapped and writable for the lifetime of the writer, and no Rust
    /// reference may point into it.
    pub unsafe fn writer(&mut self) -> Writer<'_> {
        Writer(self.cursor())
    }

    fn cursor(&mut self) -> Cursor<'_> {
        Cursor {
            remaining: self.total,
            rest: &mut self.list,
            is_copied: self.is_copied,
        }
    }
}

/// The unused rest of a segment list. Advancing shortens the first segment in place.
struct Cursor<'a> {
    rest: &'a mut [libc::iovec],
    remaining: usize,
    /// See [`Segments::set_copied`].
    is_copied: bool,
}

impl<'a> Cursor<'a> {
    /// The address of the next `count` bytes, if one segment holds them all.
    fn contiguous(&self, count: usize) -> Option<*mut u8> {
        let first = self.rest.first()?;
        (first.iov_len >= count).then_some(first.iov_base.cast())
    }

    fn advance(&mut self, mut count: usize) {
        count = count.min(self.remaining);
        self.remaining -= count;
        while count > 0 {
            let Some(first) = self.rest.first_mut() else {
                return;
            };
            if count < first.iov_len {
                first.iov_base = first.iov_base.cast::<u8>().wrapping_add(count).cast();
                first.iov_len -= count;
                return;
            }
            count -= first.iov_len;
            let rest = std::mem::take(&mut self.rest);
            self.rest = &mut rest[1..];
        }
    }

    /// Calls `transfer` with the segments of the next `count` bytes, at most
    /// [`MAX_SEGMENTS_PER_CALL`], and advances by the number of bytes it returns.
    fn vectored(
        &mut self,
        count: usize,
        transfer: impl FnOnce(*const libc::iovec, usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut used = 0;
        let mut left = count.min(self.remaining);
        while left > 0 && used < self.rest.len().min(MAX_SEGMENTS_PER_CALL) {
            let len = self.rest[used].iov_len;
            used += 1;
            if len > left {
                // The last segment is shortened for the call and restored afterwards.
                self.rest[used - 1].iov_len = left;
                let result = transfer(self.rest.as_ptr(), used);
                self.rest[used - 1].iov_len = len;
                let done = result?;
                self.advance(done);
                return Ok(done);
            }
            left -= len;
        }
        let done = transfer(self.rest.as_ptr(), used)?;
        self.advance(done);
        Ok(done)
    }
}

/// The result of a vectored system call: a number of bytes, or errno.
fn byte_count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// `used` as a C int; it is at most [`MAX_SEGMENTS_PER_CALL`].
fn segment_count(used: usize) -> libc::c_int {
    libc::c_int::try_from(used).unwrap_or(libc::c_int::MAX)
}
