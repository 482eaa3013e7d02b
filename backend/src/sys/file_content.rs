//! System calls on ranges of a file's content and on its writeback.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::ReadWriteFlags;

use super::file::retry;

/// Sets the size of a file that is open for writing.
///
/// # Errors
/// Those of `ftruncate(2)`.
pub fn truncate(file: BorrowedFd<'_>, size: u64) -> io::Result<()> {
    retry(|| rustix::fs::ftruncate(file, size))
}

/// Appends bytes to a file that is open for writing, and returns how many.
///
/// # Errors
/// Those of `pwritev2(2)`.
pub fn append(file: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let parts = [IoSlice::new(bytes)];
    Ok(rustix::io::pwritev2(
        file,
        &parts,
        0,
        ReadWriteFlags::APPEND,
    )?)
}

/// Fills `bytes` with what a file that is open for reading has from `offset` on.
///
/// # Errors
/// Those of `pread(2)`; UnexpectedEof if the file ends before.
pub fn read_exact_at(file: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest @ [_, ..]) = bytes.get_mut(done..) {
        match retry(|| rustix::io::pread(file, &mut *rest, offset + done as u64))? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(())
}

/// Allocates, punches, zeroes, collapses or inserts a range; `mode` holds `FALLOC_FL_*`.
///
/// # Errors
/// Those of `fallocate(2)`.
pub fn allocate(file: BorrowedFd<'_>, mode: u32, offset: u64, length: u64) -> io::Result<()> {
    retry(|| rustix::fs::fallocate(file, FallocateFlags::from_bits_retain(mode), offset, length))
}

/// Copies up to `length` bytes on the host and returns their number.
///
/// # Errors
/// Those of `copy_file_range(2)`.
pub fn copy_range(
    source: BorrowedFd<'_>,
    mut from: u64,
    target: BorrowedFd<'_>,
    mut to: u64,
    length: usize,
) -> io::Result<usize> {
    retry(|| rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length))
}

/// The target of [`seek`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTarget {
    /// Allocated data.
    Data,
    /// A hole, or the end of the file.
    Hole,
}

/// The offset of the next data or hole at or after `offset`.
///
/// # Errors
/// Those of `lseek(2)`; ENXIO beyond the end.
pub fn seek(file: BorrowedFd<'_>, offset: u64, target: SeekTarget) -> io::Result<u64> {
    let position = match target {
        SeekTarget::Data => SeekFrom::Data(offset),
        SeekTarget::Hole => SeekFrom::Hole(offset),
    };
    Ok(rustix::fs::seek(file, position)?)
}

/// Writes a file's content, and its attributes unless `data_only`, to stable storage.
///
/// # Errors
/// Those of `fsync(2)`.
pub fn sync(file: BorrowedFd<'_>, data_only: bool) -> io::Result<()> {
    retry(|| {
        if data_only {
            rustix::fs::fdatasync(file)
        } else {
            rustix::fs::fsync(file)
        }
    })
}

/// Writes the file system that holds `file` to stable storage.
///
/// # Errors
/// Those of `syncfs(2)`.
pub fn sync_file_system(file: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}
