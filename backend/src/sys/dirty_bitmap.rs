//! The bitmap of a guest's dirty pages, in memory that the frontend shares.
#![allow(unsafe_code)] // a mapping of the frontend's file, and bytes in it

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::FileType;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::guest_memory::Guarded;

/// One bit for each page, the lowest bit of a byte first.
#[derive(Debug)]
pub struct DirtyBitmap {
    // Fields drop in this order: a guard that outlived its mapping would cover the next one.
    _guard: Guarded,
    mapping: Mapping,
}

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it is accessed through atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl DirtyBitmap {
    /// Maps `len` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// The file is shorter; those of mmap(2).
    pub fn map(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        if is_file && end > stat.st_size.unsigned_abs() {
            return Err(io::Error::other(format!(
                "the bitmap's {len} bytes from {offset} on extend past the end of its file"
            )));
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe {
            let nowhere = std::ptr::null_mut();
            mmap(nowhere, len, protection, MapFlags::SHARED, file, offset)
        }?;
        let base: NonNull<u8> = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping { base, len };
        Ok(Self {
            _guard: Guarded::new(base.as_ptr(), len)?,
            mapping,
        })
    }

    /// Marks the pages from `first` to `last`. The bitmap's end ends the marking.
    pub fn mark(&self, first: u64, last: u64) {
        for page in first..=last {
            let Some(byte) = self.mapping.byte(page / 8) else {
                return;
            };
            byte.fetch_or(1 << (page % 8), Ordering::AcqRel);
        }
    }
}

impl Mapping {
    fn byte(&self, index: u64) -> Option<&AtomicU8> {
        let index = usize::try_from(index)
            .ok()
            .filter(|index| *index < self.len)?;
        // SAFETY: the byte is within the mapping.
        let byte = unsafe { self.base.add(index) };
        // SAFETY: the mapping lives as long as this value, and other processes may change the byte
        // at any time, as another thread may change an atomic.
        Some(unsafe { AtomicU8::from_ptr(byte.as_ptr()) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the mapping any more.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn pages_are_marked_up_to_the_end_and_a_short_file_is_refused() {
        let mut file = tempfile::tempfile().expect("a file");
        file.set_len(4096 + 2).expect("grown");
        assert!(DirtyBitmap::map(file.as_fd(), 4096, 3).is_err());
        assert!(DirtyBitmap::map(file.as_fd(), u64::MAX, 3).is_err());
        let bitmap = DirtyBitmap::map(file.as_fd(), 4096, 2).expect("mapped");
        bitmap.mark(0, 0);
        bitmap.mark(7, 9);
        bitmap.mark(15, u64::MAX);
        bitmap.mark(1 << 40, 1 << 40);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes[4096..], [0b1000_0001, 0b1000_0011]);
    }
}
