//! Files of the host, read into shared memory and written from it without a copy.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use gangplank_service::output::close;
use vm_memory::{ReadVolatile, VolatileMemoryError, WriteVolatile};

use super::error::{Error, Result};
use crate::{Data, FuseSession};

/// A file of the host, read from its present position. `path` is for messages.
#[derive(Debug)]
pub(super) struct HostReader {
    file: File,
    path: PathBuf,
    offset: u64,
    /// The error that ended a piece after its first byte. A socket or a pipe reports an error only
    /// once.
    failed: Option<io::Error>,
}

impl HostReader {
    pub(super) const fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            offset: 0,
            failed: None,
        }
    }

    /// The next piece, up to `room` bytes; `None` at the end. Data read before an error is a piece;
    /// the next call returns the error.
    pub(super) fn next(&mut self, session: &FuseSession, room: usize) -> Result<Option<Data>> {
        if let Some(error) = self.failed.take() {
            return Err(self.refused(error));
        }
        let buffer = session.buffer(room);
        let buffer = buffer.map_err(|error| self.refused(io::Error::other(error)))?;
        let mut filled = 0;
        while filled < room {
            let read = buffer.bytes().offset(filled);
            let read = read.and_then(|mut rest| self.file.read_volatile(&mut rest));
            match read.map_err(to_io) {
                Ok(0) => break,
                Ok(count) => {
                    filled += count;
                    self.offset = self.offset.saturating_add(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if filled == 0 => return Err(self.refused(error)),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok((filled != 0).then(|| Data::new(buffer, filled)))
    }

    fn refused(&self, source: io::Error) -> Error {
        Error::HostTransfer {
            what: "read",
            path: self.path.clone(),
            offset: self.offset,
            source,
        }
    }
}

/// A file of the host, written from its beginning. `path` is for messages.
#[derive(Debug)]
pub(super) struct HostWriter {
    file: File,
    path: PathBuf,
    offset: u64,
}

impl HostWriter {
    pub(super) const fn new(file: File, path: PathBuf) -> Self {
        Self {
            file,
            path,
            offset: 0,
        }
    }

    /// Writes a piece after the previous one.
    pub(super) fn write(&mut self, data: &Data) -> Result<()> {
        let written = write_all(&self.file, data, &mut self.offset);
        written.map_err(|source| Error::HostTransfer {
            what: "write",
            path: self.path.clone(),
            offset: self.offset,
            source,
        })
    }

    /// Closes the file. A network file system may report only here what it could not write.
    pub(super) fn close(self) -> Result<()> {
        close(self.file).map_err(|source| Error::Host {
            what: "close",
            path: self.path,
            source,
        })
    }
}

/// Writes all of `data`. Adds the bytes written to `offset`, also if not all are.
pub(super) fn write_all(mut file: &File, data: &Data, offset: &mut u64) -> io::Result<()> {
    let bytes = data.bytes();
    let mut done = 0;
    while done < data.len() {
        let written = bytes.offset(done);
        let written = written.and_then(|rest| file.write_volatile(&rest));
        match written.map_err(to_io) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                done += count;
                *offset = offset.saturating_add(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn to_io(error: VolatileMemoryError) -> io::Error {
    match error {
        VolatileMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}
