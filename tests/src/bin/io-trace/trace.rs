//! The system calls of a script and their results.
#![allow(clippy::print_stdout, reason = "this is the program's output")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Result;
use gangplank_service::output::close;
use gangplank_tests::trace::{Case, Version, errno_name, folded, pattern};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

/// A script: a sequence of calls in a directory. It returns only unexpected errors.
pub(crate) type Script = fn(&Path, &Case, &mut Trace) -> Result<()>;

/// Aligned for `O_DIRECT`.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
pub(crate) struct Page(pub(crate) [u8; 4096]);

/// A line for each call.
#[derive(Default)]
pub(crate) struct Trace {
    lines: Vec<String>,
}

impl Trace {
    /// Records a call for `wanted` bytes.
    pub(crate) fn count(
        &mut self,
        call: &str,
        wanted: usize,
        result: rustix::io::Result<usize>,
    ) -> rustix::io::Result<usize> {
        self.lines.push(match result {
            Ok(count) => format!("{call} {wanted} = {count}"),
            Err(errno) => format!("{call} {wanted} = {}", errno_name(errno)),
        });
        result
    }

    /// Records a call without a count.
    pub(crate) fn done<T>(&mut self, call: &str, result: rustix::io::Result<T>) -> Option<T> {
        self.lines.push(match &result {
            Ok(_) => format!("{call} = 0"),
            Err(errno) => format!("{call} = {}", errno_name(*errno)),
        });
        result.ok()
    }

    /// Compares bytes with the file's, and records a difference.
    pub(crate) fn check(&mut self, version: Version, offset: u64, bytes: &[u8]) {
        if bytes != pattern(version, offset, bytes.len()) {
            let length = bytes.len();
            self.text(&format!("WRONG BYTES: {length} at {offset}"));
        }
    }

    /// Records any text.
    pub(crate) fn text(&mut self, text: &str) {
        self.lines.push(text.to_owned());
    }

    /// Opens the case's file, and records a failure.
    pub(crate) fn open(&mut self, directory: &Path, name: &str, flags: OFlags) -> Option<OwnedFd> {
        match open(directory.join(name), flags, Mode::from_raw_mode(0o644)) {
            Ok(file) => Some(file),
            Err(errno) => self.done("open", Err(errno)),
        }
    }

    /// Closes a file.
    pub(crate) fn close(&mut self, file: OwnedFd) {
        let result = close(file);
        let errno = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        self.done("close", result.map_err(errno));
    }

    /// Writes the new version of `range` by calls of `block` bytes until one fails. Continues after
    /// a short count, and repeats an interrupted call.
    pub(crate) fn write_all(
        &mut self,
        file: impl AsFd,
        (start, end): (u64, u64),
        block: usize,
        is_direct: bool,
    ) {
        let mut at = start;
        let mut interrupted = 0;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let length = block.min(left);
            let bytes = pattern(Version::New, at, length);
            let result = if is_direct {
                let pages = to_pages(&bytes);
                rustix::io::write(&file, flat(&pages).get(..length).unwrap_or_default())
            } else {
                rustix::io::write(&file, &bytes)
            };
            match self.count("write", length, result) {
                Ok(0) => return,
                Ok(count) => at += count as u64,
                Err(Errno::INTR) if interrupted < 3 => interrupted += 1,
                Err(_) => return,
            }
        }
    }

    /// Prints the lines, each after the case's number.
    pub(crate) fn print(&self, id: u32) {
        for line in folded(&self.lines) {
            println!("{id} {line}");
        }
    }
}

/// The bytes in aligned memory.
fn to_pages(bytes: &[u8]) -> Vec<Page> {
    let mut pages = vec![Page([0; 4096]); bytes.len().div_ceil(4096)];
    for (page, chunk) in pages.iter_mut().zip(bytes.chunks(4096)) {
        if let Some(start) = page.0.get_mut(..chunk.len()) {
            start.copy_from_slice(chunk);
        }
    }
    pages
}

/// Aligned memory as bytes.
#[allow(unsafe_code, reason = "O_DIRECT wants aligned memory")]
fn flat(pages: &[Page]) -> &[u8] {
    // SAFETY: a page is nothing but bytes, and a slice of pages has no gaps.
    unsafe { std::slice::from_raw_parts(pages.as_ptr().cast::<u8>(), size_of_val(pages)) }
}

/// Aligned memory as bytes that may be changed.
#[allow(unsafe_code, reason = "O_DIRECT wants aligned memory")]
pub(crate) fn flat_mut(pages: &mut [Page]) -> &mut [u8] {
    let length = size_of_val(pages);
    // SAFETY: as for `flat`; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast::<u8>(), length) }
}

/// The content of a file in memory, from its beginning.
pub(crate) fn content_of(file: OwnedFd) -> Result<Vec<u8>> {
    let mut file = File::from(file);
    let mut content = Vec::new();
    std::io::Seek::rewind(&mut file)?;
    std::io::Read::read_to_end(&mut file, &mut content)?;
    Ok(content)
}
