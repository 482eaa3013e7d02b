//! Memory that a process shares with the processes that it starts: it outlives each of them.
#![allow(
    unsafe_code,
    reason = "mappings, and references into them, have no safe wrapper"
)]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::{Deref, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64};
use std::{fmt, io};

use rustix::fs::{
    MemfdFlags, SealFlags, SeekFrom, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate,
    memfd_create, seek,
};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// A type that may lie in shared memory: each content is valid, zeros included, and it changes
/// through atomics only. `shared_struct!` implements it
/// for structures.
///
/// # Safety
/// The type consists of atomic integers alone.
pub unsafe trait Shared: Sync {}

macro_rules! shared {
    ($($name:ty),*) => {
        $(
            // SAFETY: it is an atomic integer.
            unsafe impl Shared for $name {}
        )*
    };
}

shared!(
    AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicI32, AtomicI64
);

// SAFETY: it consists of elements that are.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Defines a structure of `#[repr(C)]` that may lie in shared memory. Its fields are of types that
/// may.
macro_rules! shared_struct {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $field_visibility:vis $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$attribute])*
        #[repr(C)]
        $visibility struct $name {
            $($(#[$field_attribute])* $field_visibility $field: $type,)*
        }

        #[allow(unsafe_code, reason = "the constant checks each field")]
        const _: () = {
            const fn check<T: $crate::sys::shared_memory::Shared>() {}
            $(check::<$type>();)*
            // SAFETY: each field may lie in shared memory, as checked above.
            unsafe impl $crate::sys::shared_memory::Shared for $name {}
        };
    };
}
pub(crate) use shared_struct;

const PROTECTION: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
const FLAGS: MapFlags = MapFlags::SHARED.union(MapFlags::NORESERVE);
const COPY_FLAGS: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

/// Maps part of a file.
fn map(file: BorrowedFd<'_>, offset: u64, len: usize) -> rustix::io::Result<*mut c_void> {
    // SAFETY: a new mapping at an address that the kernel chooses.
    unsafe { mmap(std::ptr::null_mut(), len, PROTECTION, FLAGS, file, offset) }
}

/// Shared memory, zeroed if it is new. Pages take memory once they are written to.
#[derive(Debug)]
pub struct SharedMemory {
    base: NonNull<u8>,
    len: NonZeroUsize,
    file: Option<OwnedFd>,
}

// SAFETY: the mapping belongs to this value until it is dropped.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps `len` bytes, rounded up to whole pages, of a new memory file `name`. Without a file if
    /// the process's limit of file sizes (`RLIMIT_FSIZE`) does not permit that length.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2) and mmap(2).
    pub fn new(name: &str, len: usize) -> io::Result<Self> {
        let len = len.max(1).next_multiple_of(rustix::param::page_size());
        let file = memfd_create(name, MemfdFlags::CLOEXEC)?;
        let file = match ftruncate(&file, len as u64) {
            Ok(()) => Some(file),
            Err(Errno::FBIG) => None,
            Err(error) => return Err(error.into()),
        };
        let base = match &file {
            Some(file) => map(file.as_fd(), 0, len)?,
            // SAFETY: a new mapping at an address that the kernel chooses.
            None => unsafe { mmap_anonymous(std::ptr::null_mut(), len, PROTECTION, FLAGS) }?,
        };
        Self::mapped(base, len, file)
    }

    /// Maps the first page of a file. The file must have `len` bytes, less than a page.
    ///
    /// # Errors
    /// Those of mmap(2).
    #[cfg(feature = "crash-hook")]
    pub fn of_file(file: OwnedFd, len: usize) -> io::Result<Self> {
        Self::mapped(map(file.as_fd(), 0, len)?, len, None)
    }

    /// A new memory file of `len` bytes, rounded up to whole pages, whose length never changes.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2) and fcntl(2).
    pub fn sealed_file(name: &str, len: usize) -> io::Result<OwnedFd> {
        let len = len.max(1).next_multiple_of(rustix::param::page_size());
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, len as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file)
    }

    /// Maps `len` bytes of another process's memory file, from the byte `offset` on.
    ///
    /// # Errors
    /// `InvalidInput` if the file is too short or not sealed against becoming so, since an access
    /// beyond its end would end this process; those of fstat(2), fcntl(2) and mmap(2).
    pub fn of_sealed_file(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let refused = |why: &'static str| io::Error::new(io::ErrorKind::InvalidInput, why);
        if !fcntl_get_seals(file)?.contains(SealFlags::SHRINK) {
            return Err(refused("its file is not sealed against shrinking"));
        }
        let end = offset.checked_add(len as u64);
        let file_len = fstat(file)?.st_size.unsigned_abs();
        if len == 0 || end.is_none_or(|end| end > file_len) {
            return Err(refused("its file is too short"));
        }
        Self::mapped(map(file, offset, len)?, len, None)
    }

    /// A copy of `len` bytes of another process's memory file, from the byte `offset` on. Nothing
    /// that happens to the file later is seen, and a file that becomes shorter does no harm.
    ///
    /// # Errors
    /// Those of fcntl(2), mmap(2) and pread(2); `InvalidInput` if it is no memory file, whose reads
    /// never wait; `UnexpectedEof` if it is too short.
    pub fn copy_of(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        // Only memory files have seals.
        fcntl_get_seals(file)?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len.max(1), PROTECTION, COPY_FLAGS) }?;
        let copy = Self::mapped(base, len.max(1), None)?;
        let mut done = 0;
        while done < len {
            // SAFETY: `done` is within the mapping.
            let start = unsafe { copy.base.add(done) };
            // SAFETY: the rest of the mapping, to which nothing else refers yet.
            let rest = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len - done) };
            match rustix::io::pread(file, rest, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(copy)
    }

    /// Maps the first `len` bytes, rounded up to whole pages, of a memory file that another process
    /// has made.
    ///
    /// # Errors
    /// Those of mmap(2); `InvalidData` if the file is shorter.
    pub fn attach(file: OwnedFd, len: usize) -> io::Result<Self> {
        let len = len.max(1).next_multiple_of(rustix::param::page_size());
        let size = fstat(&file)?.st_size;
        if usize::try_from(size).is_ok_and(|size| size >= len) {
            return Self::mapped(map(file.as_fd(), 0, len)?, len, Some(file));
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Takes over a mapping, and leaves it out of core files: for these, the kernel would give
    /// memory to each page of a sparse file.
    fn mapped(base: *mut c_void, len: usize, file: Option<OwnedFd>) -> io::Result<Self> {
        let failed = || io::Error::from_raw_os_error(libc::ENOMEM);
        // SAFETY: the advice changes no content, and the mapping is the caller's.
        unsafe { madvise(base, len, Advice::LinuxDontDump) }?;
        Ok(Self {
            base: NonNull::new(base.cast()).ok_or_else(failed)?,
            len: NonZeroUsize::new(len).ok_or_else(failed)?,
            file,
        })
    }

    /// The memory file, if there is one.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// The first bytes from `offset` on, and before `end`, that are in pages with memory. All
    /// others are zero. `None` if there are no such bytes.
    fn next_data(&self, offset: usize, end: usize) -> Option<Range<usize>> {
        let mut offset = offset;
        while offset < end {
            let all = offset..end;
            let Some(file) = &self.file else {
                return Some(all);
            };
            let found = match seek(file, SeekFrom::Data(offset as u64)) {
                Ok(found) => usize::try_from(found).unwrap_or(usize::MAX).max(offset),
                // There is no data behind.
                Err(Errno::NXIO) => return None,
                Err(_) => return Some(all),
            };
            let hole = match seek(file, SeekFrom::Hole(found as u64)) {
                Ok(hole) => usize::try_from(hole).unwrap_or(usize::MAX).min(end),
                Err(_) => end,
            };
            if found < hole {
                return Some(found..hole);
            }
            // It lies behind the end, or was given back meanwhile.
            offset = found
                .saturating_add(1)
                .next_multiple_of(rustix::param::page_size());
        }
        None
    }

    /// Gives the whole pages in `offset..offset + len` back to the system: they read as zeros, and
    /// take memory once they are written to again.
    ///
    /// # Errors
    /// Those of madvise(2).
    fn release(&self, offset: usize, len: usize) -> io::Result<()> {
        let page = rustix::param::page_size();
        let first = offset.next_multiple_of(page);
        let end = offset.saturating_add(len).min(self.len.get()) / page * page;
        let Some(len @ 1..) = end.checked_sub(first) else {
            return Ok(());
        };
        // SAFETY: `first` is within the mapping.
        let start: *mut c_void = unsafe { self.base.add(first) }.as_ptr().cast();
        // SAFETY: the range is within the mapping, and what is in it may change at any time.
        unsafe { madvise(start, len, Advice::LinuxRemove) }.map_err(io::Error::from)
    }
}

/// An array in shared memory, which it keeps mapped.
pub struct SharedSlice<T> {
    memory: Arc<SharedMemory>,
    start: NonNull<T>,
    count: usize,
}

// SAFETY: it gives out references to types that may be shared between threads.
unsafe impl<T: Shared> Send for SharedSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for SharedSlice<T> {}

impl<T: Shared> SharedSlice<T> {
    /// `count` values from the byte `offset` on.
    ///
    /// # Panics
    /// The values do not lie in the memory, or are not aligned. Offsets are computed at start, so
    /// that no guest causes this.
    pub fn new(memory: &Arc<SharedMemory>, offset: usize, count: usize) -> Self {
        let end = count
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_add(offset));
        let is_inside = end.is_some_and(|end| end <= memory.len.get());
        assert!(is_inside, "out of range");
        assert!(offset.is_multiple_of(align_of::<T>()), "not aligned");
        // SAFETY: `offset` is within the mapping, as checked above.
        let start = unsafe { memory.base.add(offset) };
        Self {
            memory: Arc::clone(memory),
            start: start.cast(),
            count,
        }
    }

    /// The elements that lie in pages with memory, each with its index. All others are zero.
    ///
    /// A large array of few elements is searched in the time that its pages take, and the search
    /// gives memory to none. The system knows these pages, so no damage of the content hides one.
    /// Two system calls for each run of pages; without a file, all elements.
    pub fn in_memory(&self) -> impl Iterator<Item = (usize, &T)> {
        let start = self.byte_offset(0);
        let end = self.byte_offset(self.count);
        let mut next = start;
        let mut found = 0..0;
        std::iter::from_fn(move || {
            while found.is_empty() {
                let data = self.memory.next_data(next, end)?;
                next = data.end;
                // The last element of the run before may reach into this one.
                let first = ((data.start - start) / size_of::<T>()).max(found.end);
                found = first..(data.end - start).div_ceil(size_of::<T>());
            }
            let index = found.next()?;
            Some((index, self.get(index)?))
        })
    }

    /// Where an element begins in the memory.
    fn byte_offset(&self, index: usize) -> usize {
        let base = self.memory.base.addr().get();
        self.start.addr().get() - base + index * size_of::<T>()
    }

    /// Gives the memory of the elements `from..to` back to the system, as far as they fill pages.
    /// Those become zero.
    ///
    /// # Errors
    /// Those of madvise(2).
    pub fn release(&self, from: usize, to: usize) -> io::Result<()> {
        let to = to.min(self.count);
        self.memory.release(
            self.byte_offset(from),
            to.saturating_sub(from) * size_of::<T>(),
        )
    }
}

impl<T: Shared> Deref for SharedSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` has checked that the mapping holds the values, aligned, and `memory` keeps
        // it mapped. Each content is valid for the type, and changes through atomics only.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T> Clone for SharedSlice<T> {
    fn clone(&self) -> Self {
        Self {
            memory: Arc::clone(&self.memory),
            ..*self
        }
    }
}

impl<T> fmt::Debug for SharedSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedSlice").finish_non_exhaustive()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and all references into it have ended.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::process::{self, Forked};
    use super::*;

    fn memory(len: usize) -> Arc<SharedMemory> {
        Arc::new(SharedMemory::new("test", len).expect("mapped"))
    }

    #[test]
    fn what_a_process_wrote_outlives_it() {
        let memory = memory(1 << 30);
        assert!(memory.file().is_some());
        let values = SharedSlice::<AtomicU64>::new(&memory, 1 << 29, 2);
        match process::clone_sharing_descriptors().expect("cloned") {
            Forked::Child => {
                values[1].store(7, Ordering::Relaxed);
                process::exit(0)
            }
            Forked::Parent(child) => {
                rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())
                    .expect("ended");
            }
        }
        assert_eq!(values[1].load(Ordering::Relaxed), 7);
    }

    #[test]
    fn what_another_process_made_is_mapped_as_far_as_it_reaches() {
        let memory = memory(8192);
        let file = || memory.file().unwrap().try_clone_to_owned().unwrap();
        let other = Arc::new(SharedMemory::attach(file(), 4096).unwrap());
        SharedSlice::<AtomicU64>::new(&memory, 0, 1)[0].store(5, Ordering::Relaxed);
        let seen = SharedSlice::<AtomicU64>::new(&other, 0, 1)[0].load(Ordering::Relaxed);
        assert_eq!(seen, 5);
        let error = SharedMemory::attach(file(), 1 << 30).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_copy_stays_what_it_was_and_a_shorter_or_other_file_is_an_error() {
        let memory = memory(8192);
        let values = SharedSlice::<AtomicU64>::new(&memory, 4096, 1);
        values[0].store(5, Ordering::Relaxed);
        let file = memory.file().unwrap();
        let copy = Arc::new(SharedMemory::copy_of(file, 4096, 16).unwrap());
        values[0].store(6, Ordering::Relaxed);
        ftruncate(file, 4096).unwrap();
        let copied = SharedSlice::<AtomicU64>::new(&copy, 0, 1);
        assert_eq!(copied[0].load(Ordering::Relaxed), 5);
        let error = SharedMemory::copy_of(file, 4000, 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let (pipe, _other) = io::pipe().unwrap();
        let error = SharedMemory::copy_of(pipe.as_fd(), 0, 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn released_pages_read_as_zeros() {
        let page = rustix::param::page_size();
        let values = SharedSlice::<AtomicU64>::new(&memory(4 * page), 0, 4 * page / 8);
        values
            .iter()
            .for_each(|value| value.store(1, Ordering::Relaxed));
        // The part of a page at the beginning stays.
        values.release(1, 1 + 2 * page / 8).expect("released");
        let zeros = |page_index: usize| {
            let from = page_index * page / 8;
            values[from..from + page / 8]
                .iter()
                .all(|value| value.load(Ordering::Relaxed) == 0)
        };
        assert_eq!([0, 1, 2, 3].map(zeros), [false, true, false, false]);
    }

    #[test]
    fn a_search_finds_each_element_that_was_written_and_takes_no_memory() {
        type Element = [AtomicU64; 3];
        let page = rustix::param::page_size();
        let memory = memory(1 << 24);
        // No whole number of elements is in a page.
        let values = SharedSlice::<Element>::new(&memory, page, (1 << 23) / size_of::<Element>());
        let used = || {
            let file = memory.file().expect("a file");
            fstat(file).expect("its attributes").st_blocks
        };
        assert_eq!(values.in_memory().count(), 0);
        SharedSlice::<AtomicU64>::new(&memory, 0, 1)[0].store(1, Ordering::Relaxed);
        let behind = SharedSlice::<AtomicU64>::new(&memory, (1 << 23) + 2 * page, 1);
        behind[0].store(1, Ordering::Relaxed);
        assert_eq!(values.in_memory().count(), 0, "others' pages");
        // The first one, those at the ends of a page, one of which is in two pages, and the last.
        let last = values.len() - 1;
        let written = [0, page / 24, page / 24 + 1, 2 * page / 24, 9999, last];
        for index in written {
            values[index][2].store(index as u64 + 1, Ordering::Relaxed);
        }
        let before = used();
        let found: Vec<usize> = values.in_memory().map(|(index, _)| index).collect();
        assert!(found.is_sorted_by(|one, next| one < next), "each once");
        assert!(found.len() < 7 * (page / 24 + 2), "{}", found.len());
        for (index, value) in values.in_memory() {
            let expected = written.contains(&index).then_some(index as u64 + 1);
            assert_eq!(value[2].load(Ordering::Relaxed), expected.unwrap_or(0));
        }
        assert!(written.iter().all(|index| found.contains(index)));
        // An element of each run may end in the next page.
        let pages = (used() - before) / 8;
        assert!(pages <= 5, "{pages}");
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn values_lie_in_the_memory() {
        SharedSlice::<AtomicU64>::new(&memory(1), 0, 1 << 20);
    }
}
