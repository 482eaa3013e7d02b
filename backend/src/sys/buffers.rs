//! The scattered memory of a request, and transfers between it and files.
//!
//! The segments usually lie in guest memory, which the guest can change at any time. So they are
//! raw addresses and never Rust references: bytes are copied out once, and only the copy is used.
#![allow(unsafe_code)] // the only module that accesses guest memory by raw addresses

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The kernel's limit of segments per vectored call (`UIO_MAXIOV`, `linux/uio.h`).
const MAX_SEGMENTS_PER_CALL: usize = 1024;

/// The kernel's limit of bytes per call (`MAX_RW_COUNT`), for pages of up to 64 KiB.
const MAX_BYTES_PER_CALL: usize = 0x7fff_0000;

/// A growable list of memory segments. Adjacent segments are merged. [`Segments::clear`] keeps the
/// allocation.
#[derive(Default)]
pub struct Segments {
    list: Vec<libc::iovec>,
    total: usize,
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
        Reader(Cursor {
            remaining: self.total,
            rest: &mut self.list,
        })
    }

    /// Writes to the segments, starting at the first byte.
    ///
    /// # Safety
    /// Each segment must be mapped and writable for the lifetime of the writer, and no Rust
    /// reference may point into it.
    pub unsafe fn writer(&mut self) -> Writer<'_> {
        Writer(Cursor {
            remaining: self.total,
            rest: &mut self.list,
        })
    }
}

/// The unused rest of a segment list. Advancing shortens the first segment in place.
struct Cursor<'a> {
    rest: &'a mut [libc::iovec],
    remaining: usize,
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

/// The readable part of a request: bytes from the guest.
pub struct Reader<'a>(Cursor<'a>);

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
            unsafe { std::ptr::copy_nonoverlapping(first.iov_base.cast::<u8>(), target, chunk) };
            filled += chunk;
            self.0.advance(chunk);
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
        if let Some(base) = self.0.contiguous(size_of::<T>()) {
            // SAFETY: the caller of `Segments::reader` keeps the segment mapped, and it holds
            // enough bytes for a `T`, which any bytes form.
            let value = unsafe { base.cast::<T>().read_unaligned() };
            self.0.advance(size_of::<T>());
            return Some(value);
        }
        let mut value = T::new_zeroed();
        (self.read(value.as_mut_bytes()) == size_of::<T>()).then_some(value)
    }

    /// Writes the next bytes, at most `count`, to `file` at `offset` by one `pwritev2` with `flags`
    /// (`RWF_*`). Returns how many were written, which may be fewer.
    ///
    /// # Errors
    /// Those of `pwritev2(2)`.
    pub fn write_to(
        &mut self,
        file: BorrowedFd<'_>,
        count: usize,
        offset: u64,
        flags: i32,
    ) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
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

/// The writable part of a request: room for bytes to the guest.
pub struct Writer<'a>(Cursor<'a>);

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
            unsafe { std::ptr::copy_nonoverlapping(source, first.iov_base.cast::<u8>(), chunk) };
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
            unsafe { std::ptr::copy_nonoverlapping(bytes, base, size_of::<T>()) };
            self.0.advance(size_of::<T>());
            return true;
        }
        self.0.remaining >= size_of::<T>() && self.write(value.as_bytes()) == size_of::<T>()
    }

    /// How many of the next `count` bytes one call of [`Writer::read_from`] requests from the
    /// kernel. A smaller result is a short read.
    pub fn max_per_call(&self, count: usize) -> usize {
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
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), base, N) };
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

/// `used` as a C int; it is at most [`MAX_SEGMENTS_PER_CALL`].
fn segment_count(used: usize) -> libc::c_int {
    libc::c_int::try_from(used).unwrap_or(libc::c_int::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write as _};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn adjacent_segments_are_joined() {
        let mut memory = [0u8; 8];
        let mut segments = Segments::default();
        let base = memory.as_mut_ptr();
        assert!(segments.push(base, 3) && segments.push(base.wrapping_add(3), 2));
        assert!(segments.push(base.wrapping_add(6), 2) && segments.push(base, 0));
        assert_eq!((segments.count(), segments.total()), (2, 7));
    }

    #[test]
    fn a_total_beyond_the_address_space_is_refused() {
        let mut segments = Segments::default();
        let base = std::ptr::without_provenance_mut(4096);
        assert!(segments.push(base, isize::MAX as usize));
        assert!(!segments.push(base, 1));
    }

    #[test]
    fn reading_crosses_segments_and_stops_at_the_end() {
        let (mut a, mut b) = (*b"abc", *b"defg");
        let mut segments = Segments::default();
        assert!(segments.push_slice(&mut a) && segments.push_slice(&mut b));
        // SAFETY: both arrays live to the end of the test.
        let mut reader = unsafe { segments.reader() };
        let mut five = [0; 5];
        assert_eq!(reader.read(&mut five), 5);
        assert_eq!(&five, b"abcde");
        assert_eq!(reader.remaining(), 2);
        assert_eq!(reader.read_value::<u32>(), None);
        assert_eq!(reader.read(&mut five), 2);
        assert_eq!(&five[..2], b"fg");
    }

    #[test]
    fn a_reserved_front_may_be_cut_anywhere() {
        let (mut a, mut b, mut c) = ([0u8; 3], [0u8; 4], [0u8; 3]);
        let mut segments = Segments::default();
        assert!(
            segments.push_slice(&mut a)
                && segments.push_slice(&mut b)
                && segments.push_slice(&mut c)
        );
        // SAFETY: the arrays live to the end of the test.
        let mut writer = unsafe { segments.writer() };
        let front = writer.reserve::<4>().expect("ten bytes are there");
        assert_eq!(writer.write(b"567890"), 6);
        assert!(writer.reserve::<1>().is_none());
        front.fill(*b"1234");
        assert_eq!((&a, &b, &c), (b"123", b"4567", b"890"));
    }

    #[test]
    fn file_transfers_move_no_more_than_asked_and_go_on_from_there() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"0123456789").expect("written");
        let (mut a, mut b) = ([0u8; 3], [0u8; 6]);
        let mut segments = Segments::default();
        assert!(segments.push_slice(&mut a) && segments.push_slice(&mut b));
        // SAFETY: the arrays live to the end of the test.
        let mut writer = unsafe { segments.writer() };
        assert_eq!(writer.read_from(file.as_fd(), 5, 2, 0).expect("read"), 5);
        assert_eq!(writer.remaining(), 4);
        assert_eq!(writer.read_from(file.as_fd(), 100, 9, 0).expect("read"), 1);
        assert_eq!((&a, &b), (b"234", b"569\0\0\0"));

        segments.clear();
        assert!(segments.push_slice(&mut a) && segments.push_slice(&mut b));
        // SAFETY: the arrays live to the end of the test.
        let mut reader = unsafe { segments.reader() };
        assert_eq!(reader.write_to(file.as_fd(), 4, 0, 0).expect("written"), 4);
        assert_eq!(reader.remaining(), 5);
        let mut content = String::new();
        file.rewind().expect("rewound");
        file.read_to_string(&mut content).expect("read");
        assert_eq!(content, "2345456789");
    }
}
