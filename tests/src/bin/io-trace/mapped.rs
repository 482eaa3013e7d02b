//! Scripts that use a file as memory.
#![allow(
    clippy::print_stdout,
    reason = "the child's output is read by its parent"
)]

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use gangplank_tests::mapping::Mapping;
use gangplank_tests::trace::{BLOCK, Case, Version, pattern};
use rustix::fs::OFlags;

use crate::trace::Trace;

/// The argument by which this program becomes a child that touches a mapping.
pub(crate) const TOUCH: &str = "--touch";

/// Reads each page of a mapping in a child, which SIGBUS may kill.
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

/// The child: maps the file, reads page after page, and prints each.
pub(crate) fn touch(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len())?;
    let mapping = Mapping::private(&file, length).context("mmap")?;
    let mut output = std::io::stdout();
    for at in (0..length).step_by(BLOCK) {
        let mut page = vec![0; BLOCK.min(length - at)];
        // This may end the process by SIGBUS, which is the result that the parent waits for.
        mapping.load_at(at, &mut page);
        let right = page == pattern(Version::Old, at as u64, page.len());
        let line = if right { "touch = 0" } else { "WRONG BYTES" };
        writeln!(output, "{line}")?;
        // Flush before the next page may end this process.
        output.flush()?;
    }
    Ok(())
}

/// Changes the file through a shared mapping, msync twice, munmap, close.
pub(crate) fn write_mapped(directory: &Path, case: &Case, trace: &mut Trace) -> Result<()> {
    let Some(file) = trace.open(directory, &case.file(), OFlags::RDWR) else {
        return Ok(());
    };
    if let Some(mapping) = trace.done("mmap", Mapping::shared(&file, case.size)) {
        mapping.store(&pattern(Version::New, 0, case.size));
        for _ in 0..2 {
            trace.done("msync", mapping.sync());
        }
        trace.done("munmap", mapping.unmap());
    }
    trace.close(file);
    Ok(())
}
