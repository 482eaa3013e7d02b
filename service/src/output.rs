//! Standard output that reports every error.
//!
//! The standard library ignores what `close` returns at the end of the process. If the program is
//! started without a standard output, the Rust runtime opens `/dev/null` in its place, and output
//! is lost without an error.

use std::fs::File;
use std::io::{self, LineWriter, Write};
use std::os::fd::{AsFd, OwnedFd};

/// Standard output, a line at a time.
#[derive(Debug)]
pub struct Output(LineWriter<File>);

impl Output {
    /// Duplicates the standard output of the process.
    ///
    /// # Errors
    /// `dup(2)`'s.
    pub fn standard() -> io::Result<Self> {
        let standard = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self::new(standard.into()))
    }

    /// Writes to `file`.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self(LineWriter::new(file))
    }

    /// The file, for data that bypasses the line buffer. A part of a line that is still in the
    /// buffer is written after that data.
    #[must_use]
    pub fn file(&self) -> &File {
        self.0.get_ref()
    }

    /// Writes the rest and closes the file. A network file system may report only here what it
    /// could not write.
    ///
    /// # Errors
    /// `write(2)`'s and `close(2)`'s.
    pub fn close(self) -> io::Result<()> {
        let file = self
            .0
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        close(file)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Closes `file`. Dropping it would ignore the error.
///
/// # Errors
/// `close(2)`'s.
pub fn close(file: impl Into<OwnedFd>) -> io::Result<()> {
    Ok(nix::unistd::close(file.into())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No silent loss: text without a newline at its end is written when the output is closed, and
    /// its error is reported.
    #[test]
    fn closing_tells_what_could_not_be_written() {
        let mut full = Output::new(File::options().write(true).open("/dev/full").unwrap());
        full.write_all(b"no newline").unwrap();
        let error = full.close().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    /// No silent loss: a standard output that is open for reading only takes nothing.
    #[test]
    fn output_that_cannot_be_written_is_an_error() {
        let mut unwritable = Output::new(File::open("/dev/null").unwrap());
        let error = unwritable.write_all(b"a line\n").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(9), "{error}");
    }
}
