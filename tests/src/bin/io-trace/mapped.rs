//! Scripts that use a file as memory.
#![allow(unsafe_code, reason = "mapping files is what is traced here")]
#![allow(
    clippy::print_stdout,
    reason = "the child's output is read by its parent"
)]

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr;

use anyhow::{Context, Result};
use gangplank_tests::trace::{BLOCK, Case, Version, pattern};
use rustix::fs::OFlags;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

use crate::trace::Trace;

/// The argument by which this program becomes a child that touches a mapping.
pub(crate) const TOUCH: &str = "--touch";

/// Reads each page of a mapping in a child, which may die of it.
pub(crate) fn read_mapped(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let child = Command::new(std::env::current_exe()?)
        .arg(TOUCH)
        .arg(directory.join(case.file()))
        .stdout(Stdio::piped())
        .spawn()?;
    let done = child.wait_with_output()?;
    for line in String::from_utf8_lossy(&done.stdout).lines() {
        trace.text(line);
    }
    match done.status.signal() {
        Some(libc::SIGBUS) => trace.text("touch = SIGBUS"),
        Some(signal) => trace.text(&format!("touch = signal {signal}")),
        None => trace.text("touched all"),
    }
    Ok(())
}

/// The child: maps the file, touches page after page and says so each time.
pub(crate) fn touch(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len())?;
    // SAFETY: a null hint lets the kernel choose unused addresses.
    let start = unsafe {
        mmap(
            ptr::null_mut(),
            length,
            ProtFlags::READ,
            MapFlags::PRIVATE,
            &file,
            0,
        )
    }
    .context("mmap")?;
    let mut output = std::io::stdout();
    for at in (0..length).step_by(BLOCK) {
        let mut page = vec![0; BLOCK.min(length - at)];
        // SAFETY: the range lies within the mapping. Where its page cannot be read, the kernel ends
        // this process by SIGBUS, which is the result that the parent waits for.
        unsafe {
            ptr::copy_nonoverlapping(
                start.cast::<u8>().wrapping_add(at),
                page.as_mut_ptr(),
                page.len(),
            );
        }
        let right = page == pattern(Version::Old, at as u64, page.len());
        let line = if right { "touch = 0" } else { "WRONG BYTES" };
        writeln!(output, "{line}")?;
        // Before the next page may end this process.
        output.flush()?;
    }
    Ok(())
}

/// Changes the file through a shared mapping, msync twice, munmap, close.
pub(crate) fn write_mapped(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDWR) else {
        return Ok(());
    };
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a null hint lets the kernel choose unused addresses.
    let mapped = unsafe {
        mmap(
            ptr::null_mut(),
            case.size,
            access,
            MapFlags::SHARED,
            &file,
            0,
        )
    };
    if let Some(start) = trace.done("mmap", mapped) {
        let bytes = pattern(Version::New, 0, case.size);
        // SAFETY: the mapping has as many bytes, and the file, too.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start.cast::<u8>(), case.size) };
        for _ in 0..2 {
            // SAFETY: the range is exactly the live mapping.
            let synced = unsafe { msync(start, case.size, MsyncFlags::SYNC) };
            trace.done("msync", synced);
        }
        // SAFETY: the range is exactly the live mapping, and nothing refers to it after this.
        let unmapped = unsafe { munmap(start, case.size) };
        trace.done("munmap", unmapped);
    }
    trace.close(file);
    Ok(())
}
