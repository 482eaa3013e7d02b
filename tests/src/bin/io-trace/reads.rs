//! Scripts that read a file.

use std::fs;
use std::path::Path;

use anyhow::Result;
use gangplank_tests::trace::{Case, Version};
use rustix::fs::{MemfdFlags, OFlags, copy_file_range, memfd_create, sendfile};
use rustix::io::{Errno, pread, read};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use crate::trace::{Page, Trace, content_of, flat_mut};

/// Calls `step` until it moves nothing, or fails twice at the same offset. Repeats an interrupted
/// call.
fn until_end(mut step: impl FnMut(u64) -> rustix::io::Result<usize>) -> u64 {
    let mut offset = 0;
    let mut errors = 0;
    let mut interrupted = 0;
    while errors < 2 {
        match step(offset) {
            Ok(0) => break,
            Ok(count) => {
                offset += count as u64;
                errors = 0;
            }
            Err(Errno::INTR) if interrupted < 3 => interrupted += 1,
            Err(_) => errors += 1,
        }
    }
    offset
}

/// read(2) to the end.
pub(crate) fn read_to_end(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDONLY) else {
        return Ok(());
    };
    let mut buffer = vec![0; case.block];
    until_end(|offset| {
        let result = trace.count("read", case.block, read(&file, &mut buffer[..]))?;
        trace.check(Version::Old, offset, &buffer[..result]);
        Ok(result)
    });
    trace.close(file);
    Ok(())
}

/// pread(2) at odd offsets, whatever the results before.
pub(crate) fn read_at_odd_offsets(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDONLY) else {
        return Ok(());
    };
    let mut buffer = vec![0; case.block];
    for at in (1..case.size).step_by(case.block) {
        let offset = at as u64;
        let result = pread(&file, &mut buffer[..], offset);
        if let Ok(count) = trace.count("pread", case.block, result) {
            trace.check(Version::Old, offset, &buffer[..count]);
        }
    }
    trace.close(file);
    Ok(())
}

/// read(2) without the page cache.
pub(crate) fn read_directly(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECT;
    let Some(file) = trace.open(directory, &case.file(), flags) else {
        return Ok(());
    };
    let mut pages = vec![Page([0; 4096]); case.block / 4096];
    until_end(|offset| {
        let buffer = flat_mut(&mut pages);
        let result = trace.count("read", case.block, pread(&file, &mut *buffer, offset))?;
        trace.check(Version::Old, offset, &buffer[..result]);
        Ok(result)
    });
    trace.close(file);
    Ok(())
}

/// copy_file_range(2) to another file of the directory.
pub(crate) fn copy_range(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDONLY) else {
        return Ok(());
    };
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let Some(copy) = trace.open(directory, &case.copy(), flags) else {
        return Ok(());
    };
    let copied = until_end(|_| {
        let result = copy_file_range(&file, None, &copy, None, case.block);
        trace.count("copy_file_range", case.block, result)
    });
    trace.close(copy);
    trace.close(file);
    let content = fs::read(directory.join(case.copy()))?;
    trace.text(&format!("copied = {copied}"));
    trace.check(Version::Old, 0, &content);
    if content.len() as u64 != copied {
        trace.text(&format!("WRONG BYTES: the copy has {}", content.len()));
    }
    Ok(())
}

/// sendfile(2) to a file in memory.
pub(crate) fn send_file(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDONLY) else {
        return Ok(());
    };
    let target = memfd_create("io-trace", MemfdFlags::CLOEXEC)?;
    let sent = until_end(|_| {
        let result = sendfile(&target, &file, None, case.block);
        trace.count("sendfile", case.block, result)
    });
    trace.close(file);
    trace.text(&format!("sent = {sent}"));
    trace.check(Version::Old, 0, &content_of(target)?);
    Ok(())
}

/// splice(2) to a pipe, which is emptied after each call.
pub(crate) fn splice_to_pipe(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDONLY) else {
        return Ok(());
    };
    let (output, input) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut content = Vec::new();
    let spliced = until_end(|_| {
        let result = splice(&file, None, &input, None, case.block, SpliceFlags::empty());
        let count = trace.count("splice", case.block, result)?;
        let mut buffer = vec![0; count];
        let mut taken = 0;
        while taken < count {
            taken += read(&output, &mut buffer[taken..])?;
        }
        content.append(&mut buffer);
        Ok(count)
    });
    trace.close(file);
    trace.text(&format!("spliced = {spliced}"));
    trace.check(Version::Old, 0, &content);
    Ok(())
}
