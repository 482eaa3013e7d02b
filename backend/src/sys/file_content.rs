//! System calls on ranges of a file's content, and on what of it has reached the disk.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::file::retry;

/// Sets the size of a file opened for writing.
///
/// # Errors
/// `ftruncate(2)`'s.
pub fn truncate(file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
    retry(|| rustix::fs::ftruncate(file, size))
}

/// Allocates, punches, zeroes, collapses or inserts a range, as `mode` (`FALLOC_FL_*`) says.
///
/// # Errors
/// `fallocate(2)`'s.
pub fn allocate(file: BorrowedFd<'_>, mode: u32, offset: u64, length: u64) -> io::Result<()> {
    retry(|| rustix::fs::fallocate(file, FallocateFlags::from_bits_retain(mode), offset, length))
}

/// Copies up to `length` bytes inside the host and returns how many.
///
/// # Errors
/// `copy_file_range(2)`'s.
pub fn copy_range(
    source: BorrowedFd<'_>,
    mut from: u64,
    target: BorrowedFd<'_>,
    mut to: u64,
    length: usize,
) -> io::Result<usize> {
    retry(|| rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length))
}

/// What [`seek`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTarget {
    /// Bytes that are stored.
    Data,
    /// A hole, or the end of the file.
    Hole,
}

/// The offset of the next data or hole at or after `offset`.
///
/// # Errors
/// `lseek(2)`'s; ENXIO beyond the end.
pub fn seek(file: BorrowedFd<'_>, offset: u64, target: SeekTarget) -> io::Result<u64> {
    let position = match target {
        SeekTarget::Data => SeekFrom::Data(offset),
        SeekTarget::Hole => SeekFrom::Hole(offset),
    };
    Ok(rustix::fs::seek(file, position)?)
}

/// Brings a file's content, and unless `data_only` its attributes, to stable storage.
///
/// # Errors
/// `fsync(2)`'s.
pub fn sync(file: BorrowedFd<'_>, data_only: bool) -> io::Result<()> {
    retry(|| {
        if data_only {
            rustix::fs::fdatasync(file)
        } else {
            rustix::fs::fsync(file)
        }
    })
}

/// Brings the whole file system that holds `file` to stable storage.
///
/// # Errors
/// `syncfs(2)`'s.
pub fn sync_file_system(file: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}
