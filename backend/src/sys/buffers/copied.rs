//! Transfers through memory of this process, for segments whose pages may be long in coming.
//!
//! The kernel copies between a file and a process's memory while it holds the file's lock
//! (`i_rwsem`). If a page of guest memory is then to be read from a server that does not answer,
//! everybody else who needs the lock waits as well. A copy in this process waits for the page alone.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Reader, Writer, byte_count};
use crate::sys::guest_memory;
use crate::sys::volatile::copy_from_guest;

/// Bytes that one call transfers at most: what one request of a guest has.
pub(super) const MAX_COPY: usize = 1 << 20;

/// Alignment of the memory, in bytes. Direct I/O needs that of the device's blocks.
const ALIGNMENT: usize = 4096;

/// Aligned memory of this process.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT];
        // Whatever the alignment, there is room for `len` bytes.
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }

    fn iovec(&mut self) -> libc::iovec {
        let bytes = self.bytes();
        libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }
    }
}

impl Reader<'_> {
    /// [`Reader::write_to`] by way of a copy.
    pub(super) fn write_copy_to(
        &mut self,
        file: BorrowedFd<'_>,
        count: usize,
        offset: libc::off_t,
        flags: i32,
    ) -> io::Result<usize> {
        let mut copy = Buffer::new(count.min(self.remaining()).min(MAX_COPY));
        let repairs = guest_memory::repairs();
        let (mut target, mut left) = (copy.bytes().as_mut_ptr(), copy.len);
        for segment in &*self.0.rest {
            let len = segment.iov_len.min(left);
            // SAFETY: the caller of `Segments::reader` keeps the segment mapped; `left` bytes from
            // `target` on belong to `copy`, which nobody else uses.
            unsafe { copy_from_guest(segment.iov_base.cast::<u8>(), target, len) };
            target = target.wrapping_add(len);
            left -= len;
        }
        // What the guest did not write must not become the file's content.
        if guest_memory::repairs() != repairs {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        let segment = copy.iovec();
        // SAFETY: `segment` is one segment of `copy`, which lives beyond the call.
        let written = byte_count(unsafe {
            libc::pwritev2(file.as_raw_fd(), &raw const segment, 1, offset, flags)
        })?;
        self.0.advance(written);
        Ok(written)
    }
}

impl Writer<'_> {
    /// [`Writer::read_from`] by way of a copy.
    pub(super) fn read_copy_from(
        &mut self,
        file: BorrowedFd<'_>,
        count: usize,
        offset: libc::off_t,
        flags: i32,
    ) -> io::Result<usize> {
        let mut copy = Buffer::new(count.min(self.remaining()).min(MAX_COPY));
        let segment = copy.iovec();
        // SAFETY: `segment` is one segment of `copy`, which lives beyond the call and which nobody
        // else uses.
        let read = byte_count(unsafe {
            libc::preadv2(file.as_raw_fd(), &raw const segment, 1, offset, flags)
        })?;
        let bytes = copy.bytes();
        self.write(bytes.get(..read).unwrap_or(bytes));
        Ok(read)
    }
}
