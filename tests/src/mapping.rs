//! A file mapped into memory, for programs that check what mappings show and keep.
#![allow(
    unsafe_code,
    reason = "maps files and copies bytes out of and into the mapping"
)]

use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::ptr;

use rustix::io::Result;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

/// A mapping of a whole file for reading and writing, unmapped when dropped.
///
/// The file must not be truncated while the mapping lives: the kernel answers an access beyond the
/// end with SIGBUS.
pub struct Mapping {
    start: *mut std::ffi::c_void,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes of a file. Changes go to the file.
    ///
    /// # Errors
    /// `mmap(2)`'s.
    pub fn shared(file: impl AsFd, length: usize) -> Result<Self> {
        Self::new(file, length, MapFlags::SHARED)
    }

    /// Maps the first `length` bytes of a file. Changes stay in memory.
    ///
    /// # Errors
    /// `mmap(2)`'s.
    pub fn private(file: impl AsFd, length: usize) -> Result<Self> {
        Self::new(file, length, MapFlags::PRIVATE)
    }

    fn new(file: impl AsFd, length: usize, flags: MapFlags) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint lets the kernel choose unused addresses, so no memory of this program
        // is replaced.
        let start = unsafe { mmap(ptr::null_mut(), length, protection, flags, file, 0) }?;
        Ok(Self { start, length })
    }

    /// A copy of what the mapping shows.
    #[must_use]
    pub fn load(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        self.load_at(0, &mut bytes);
        bytes
    }

    /// Copies the mapping from `offset` on into `bytes`, up to the shorter end. If a page cannot be
    /// read, the kernel ends the process by SIGBUS.
    pub fn load_at(&self, offset: usize, bytes: &mut [u8]) {
        let length = bytes.len().min(self.length.saturating_sub(offset));
        let source = self.start.cast::<u8>().wrapping_add(offset);
        // SAFETY: the range lies within the mapping, and the buffer is separate memory.
        unsafe { ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), length) };
    }

    /// Overwrites the beginning of the mapping with `bytes`, up to the shorter end.
    pub fn store(&self, bytes: &[u8]) {
        let length = bytes.len().min(self.length);
        // SAFETY: as for `load_at`, in the other direction, and no longer than either side.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.cast::<u8>(), length) };
    }

    /// Writes the changes to the file and waits.
    ///
    /// # Errors
    /// `msync(2)`'s.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: the range is exactly the live mapping.
        unsafe { msync(self.start, self.length, MsyncFlags::SYNC) }
    }
}

impl Mapping {
    /// Unmaps it and returns the result.
    ///
    /// # Errors
    /// `munmap(2)`'s.
    pub fn unmap(self) -> Result<()> {
        let this = ManuallyDrop::new(self);
        // SAFETY: the range is exactly the live mapping, and nothing refers to it after this.
        unsafe { munmap(this.start, this.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly the live mapping, and nothing refers to it after this.
        let unmapped = unsafe { munmap(self.start, self.length) };
        // munmap fails only for a wrong range, and this range is right by construction.
        debug_assert!(unmapped.is_ok());
    }
}
