//! Writing the memory of a request.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::{Immutable, IntoBytes};

use super::copied::MAX_COPY;
use super::{Cursor, MAX_SEGMENTS_PER_CALL, byte_count, segment_count};
use crate::sys::volatile::copy_to_guest;

/// The kernel's limit of bytes per call (`MAX_RW_COUNT`), for pages of up to 64 KiB.
const MAX_BYTES_PER_CALL: usize = 0x7fff_0000;

/// The writable part of a request: room for bytes to the guest.
pub struct Writer<'a>(pub(super) Cursor<'a>);

impl<'a> Writer<'a> {
    /// Number of bytes of room left.
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// Copies as much of `bytes` as fits and returns the number of bytes.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let Some(first) = self.0.rest.first() else {
                break;
            };
            let chunk = first.iov_len.min(bytes.len() - done);
            let source = bytes[done..done + chunk].as_ptr();
            // SAFETY: the caller of `Segments::writer` keeps the segment mapped and free of Rust
            // references; `source` has `chunk` bytes and, as a Rust slice, does not overlap it.
            unsafe { copy_to_guest(source, first.iov_base.cast::<u8>(), chunk) };
            done += chunk;
            self.0.advance(chunk);
        }
        done
    }

    /// Copies a plain value. Returns false and writes nothing if it does not fit.
    #[must_use]
    pub fn write_value<T: IntoBytes + Immutable>(&mut self, value: &T) -> bool {
        if let Some(base) = self.0.contiguous(size_of::<T>()) {
            let bytes = value.as_bytes().as_ptr();
            // SAFETY: the caller of `Segments::writer` keeps the segment mapped and free of Rust
            // references, and it has room for the value.
            unsafe { copy_to_guest(bytes, base, size_of::<T>()) };
            self.0.advance(size_of::<T>());
            return true;
        }
        self.0.remaining >= size_of::<T>() && self.write(value.as_bytes()) == size_of::<T>()
    }

    /// How many of the next `count` bytes one call of [`Writer::read_from`] requests from the
    /// kernel. A smaller result is a short read.
    pub fn max_per_call(&self, count: usize) -> usize {
        if self.0.is_copied {
            return count.min(MAX_COPY);
        }
        let count = count.min(MAX_BYTES_PER_CALL);
        if self.0.rest.len() <= MAX_SEGMENTS_PER_CALL {
            return count;
        }
        let segments = self.0.rest.iter().take(MAX_SEGMENTS_PER_CALL);
        segments
            .map(|segment| segment.iov_len)
            .sum::<usize>()
            .min(count)
    }

    /// Reads the next bytes, at most `count`, from `file` at `offset` by one `preadv2` with `flags`
    /// (`RWF_*`). Returns how many were read, which may be fewer; 0 at the end of the file.
    ///
    /// # Errors
    /// Those of `preadv2(2)`.
    pub fn read_from(
        &mut self,
        file: BorrowedFd<'_>,
        count: usize,
        offset: u64,
        flags: i32,
    ) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        if self.0.is_copied {
            return self.read_copy_from(file, count, offset, flags);
        }
        self.0.vectored(count, |segments, used| {
            // SAFETY: `segments` points to `used` segments, which the caller of `Segments::writer`
            // keeps mapped; the kernel returns EFAULT if it cannot write them.
            byte_count(unsafe {
                libc::preadv2(
                    file.as_raw_fd(),
                    segments,
                    segment_count(used),
                    offset,
                    flags,
                )
            })
        })
    }

    /// Reserves the next `N` bytes, to be filled after the bytes that follow them. Returns `None`
    /// if there is no room.
    pub fn reserve<const N: usize>(&mut self) -> Option<Reserved<'a, N>> {
        if self.0.remaining < N {
            return None;
        }
        if let Some(base) = self.0.contiguous(N) {
            self.0.advance(N);
            return Some(Reserved {
                room: Room::Contiguous(base),
                _memory: PhantomData,
            });
        }
        let mut bytes = [std::ptr::null_mut(); N];
        for slot in &mut bytes {
            *slot = self.0.rest.first()?.iov_base.cast();
            self.0.advance(1);
        }
        Some(Reserved {
            room: Room::Scattered(bytes),
            _memory: PhantomData,
        })
    }
}

/// Reserved room for `N` bytes at the start of a reply.
pub struct Reserved<'a, const N: usize> {
    room: Room<N>,
    _memory: PhantomData<&'a mut libc::iovec>,
}

enum Room<const N: usize> {
    /// The address of `N` consecutive bytes.
    Contiguous(*mut u8),
    /// The address of each byte, because the guest may split the room anywhere.
    Scattered([*mut u8; N]),
}

impl<const N: usize> Reserved<'_, N> {
    /// Fills the reserved bytes.
    pub fn fill(self, bytes: [u8; N]) {
        match self.room {
            Room::Contiguous(base) => {
                // SAFETY: the caller of `Segments::writer` keeps the segment mapped, and it has `N`
                // bytes from this address.
                unsafe { copy_to_guest(bytes.as_ptr(), base, N) };
            }
            Room::Scattered(targets) => {
                for (target, byte) in targets.into_iter().zip(bytes) {
                    // SAFETY: the caller of `Segments::writer` keeps each address mapped and
                    // writable.
                    unsafe { target.write_volatile(byte) };
                }
            }
        }
    }
}
