//! Scripts that list directories, read attributes, and change a file's size.

use std::mem::MaybeUninit;
use std::path::Path;

use anyhow::Result;
use gangplank_tests::trace::{Case, errno_name};
use rustix::fs::{
    FallocateFlags, OFlags, RawDir, fallocate, fgetxattr, flistxattr, fsync, ftruncate,
};

use crate::trace::Trace;

/// getdents64(2) to the end, or until it has failed twice. The kernel chooses how many names one
/// call returns, so the script prints their sum.
pub(crate) fn list_directory(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let Some(opened) = trace.open(directory, &case.directory(), flags) else {
        return Ok(());
    };
    let mut buffer = vec![MaybeUninit::uninit(); case.block];
    let mut names = 0;
    for _ in 0..2 {
        let mut listing = RawDir::new(&opened, &mut buffer);
        loop {
            match listing.next() {
                Some(Ok(_)) => names += 1,
                Some(Err(errno)) => {
                    let error = errno_name(errno);
                    trace.text(&format!("getdents64 = {error} after {names}"));
                    break;
                }
                None => {
                    trace.text(&format!("getdents64 = 0 after {names}"));
                    break;
                }
            }
        }
    }
    trace.close(opened);
    Ok(())
}

/// getxattr(2) and listxattr(2), each first for the length, as programs do.
pub(crate) fn get_attributes(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDONLY) else {
        return Ok(());
    };
    for length in [0, 256, 256] {
        let mut buffer = vec![0; length];
        let result = fgetxattr(&file, "user.traced", &mut buffer[..]);
        let _ = trace.count("fgetxattr", length, result);
        let result = flistxattr(&file, &mut buffer[..]);
        let _ = trace.count("flistxattr", length, result);
    }
    trace.close(file);
    Ok(())
}

/// fallocate(2) behind the end, and of a hole in the middle.
pub(crate) fn allocate(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDWR) else {
        return Ok(());
    };
    let (size, block) = (case.size as u64, case.block as u64);
    for _ in 0..2 {
        let result = fallocate(&file, FallocateFlags::empty(), size, block);
        trace.done("fallocate", result);
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        trace.done("fallocate hole", fallocate(&file, hole, 0, block));
    }
    trace.done("fsync", fsync(&file));
    trace.close(file);
    Ok(())
}

/// ftruncate(2) to less and to more.
pub(crate) fn truncate(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDWR) else {
        return Ok(());
    };
    let size = case.size as u64;
    for wanted in [size / 2, size / 2, size * 2] {
        trace.done("ftruncate", ftruncate(&file, wanted));
    }
    trace.done("fsync", fsync(&file));
    trace.close(file);
    Ok(())
}
