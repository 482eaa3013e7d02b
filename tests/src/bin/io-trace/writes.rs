//! Scripts that write a file.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Result;
use gangplank_tests::trace::Case;
use rustix::fs::{Mode, OFlags, SeekFrom, fdatasync, fsync, open, seek, syncfs};
use rustix::io::dup;

use crate::trace::Trace;

/// Writes the whole file by calls of the case's size, and then calls `rest`.
fn write_and(
    directory: &Path,
    case: &Case,
    trace: &mut Trace,
    flags: OFlags,
    rest: impl FnOnce(&mut Trace, std::os::fd::OwnedFd) -> Result<()>,
) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::WRONLY | flags) else {
        return Ok(());
    };
    let end = case.size as u64;
    let is_direct = flags.contains(OFlags::DIRECT);
    trace.write_all(&file, (0, end), case.block, is_direct);
    rest(trace, file)
}

/// Write, fsync twice, close.
pub(crate) fn write_and_fsync(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    write_and(directory, case, trace, OFlags::empty(), |trace, file| {
        trace.done("fsync", fsync(&file));
        trace.done("fsync", fsync(&file));
        trace.close(file);
        Ok(())
    })
}

/// Write, close.
pub(crate) fn write_and_close(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    write_and(directory, case, trace, OFlags::empty(), |trace, file| {
        trace.close(file);
        Ok(())
    })
}

/// Write, close two descriptors of the same open file.
pub(crate) fn write_and_close_twice(
    directory: &Path,
    case: &Case,
    trace: &mut Trace,
) -> Result<()> {
    write_and(directory, case, trace, OFlags::empty(), |trace, file| {
        let second = dup(&file)?;
        trace.close(file);
        trace.close(second);
        Ok(())
    })
}

/// Write through a descriptor opened with `O_APPEND`, behind what is there.
pub(crate) fn append(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::APPEND;
    let Some(file) = trace.open(directory, &case.file(), flags) else {
        return Ok(());
    };
    let start = seek(&file, SeekFrom::End(0))?;
    let end = start + case.size as u64;
    trace.write_all(&file, (start, end), case.block, false);
    trace.done("fdatasync", fdatasync(&file));
    trace.close(file);
    Ok(())
}

/// Write with `O_SYNC`.
pub(crate) fn write_synchronously(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    write_and(directory, case, trace, OFlags::SYNC, |trace, file| {
        trace.close(file);
        Ok(())
    })
}

/// Write with `O_DSYNC`.
pub(crate) fn write_data_synchronously(
    directory: &Path,
    case: &Case,
    trace: &mut Trace,
) -> Result<()> {
    write_and(directory, case, trace, OFlags::DSYNC, |trace, file| {
        trace.close(file);
        Ok(())
    })
}

/// Write with `O_DIRECT`.
pub(crate) fn write_directly(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    write_and(directory, case, trace, OFlags::DIRECT, |trace, file| {
        trace.done("fsync", fsync(&file));
        trace.close(file);
        Ok(())
    })
}

/// Two open files write one half each, and each asks whether all is written, the first one again.
pub(crate) fn two_writers(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(one) = trace.open(directory, &case.file(), OFlags::WRONLY) else {
        return Ok(());
    };
    let Some(other) = trace.open(directory, &case.file(), OFlags::WRONLY) else {
        return Ok(());
    };
    let (middle, end) = ((case.size / 2) as u64, case.size as u64);
    trace.write_all(one.as_fd(), (0, middle), case.block, false);
    seek(&other, SeekFrom::Start(middle))?;
    trace.write_all(other.as_fd(), (middle, end), case.block, false);
    trace.done("fsync", fsync(&one));
    trace.done("fsync other", fsync(&other));
    trace.done("fsync", fsync(&one));
    trace.close(one);
    trace.close(other);
    Ok(())
}

/// Write, close, and ask a new open file whether all is written.
pub(crate) fn reopen_and_fsync(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    write_and(directory, case, trace, OFlags::empty(), |trace, file| {
        trace.close(file);
        let Some(again) = trace.open(directory, &case.file(), OFlags::WRONLY) else {
            return Ok(());
        };
        trace.done("fsync", fsync(&again));
        trace.close(again);
        Ok(())
    })
}

/// Write, ask whether the whole file system is written, close.
pub(crate) fn write_and_syncfs(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    // The kernel reports errors of other files to the first caller.
    let whole = open(directory, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let _ = syncfs(&whole);
    write_and(directory, case, trace, OFlags::empty(), |trace, file| {
        trace.done("syncfs", syncfs(&file));
        trace.done("fsync", fsync(&file));
        trace.close(file);
        Ok(())
    })
}
