//! Files of the host that data is copied from and to, straight from and into shared memory.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use gangplank_service::output::close;
use vm_memory::{ReadVolatile, VolatileMemoryError, WriteVolatile};

use super::error::{Error, Result};
use crate::{Data, FuseSession};

/// A file of the host that is read from where it stands; `path` is for messages.
#[derive(Debug)]
pub(super) struct HostReader {
    file: File,
    path: PathBuf,
    offset: u64,
    /// What ended a piece that had begun. A socket or a pipe tells its error only once.
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

    /// The next piece, up to `room` bytes; `None` at the end. What was read before an error is a
    /// piece, and the error is told by the next call.
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

/// A file of the host that is written from its beginning; `path` is for messages.
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

    /// Writes a piece behind the one before.
    pub(super) fn write(&mut self, data: &Data) -> Result<()> {
        let written = write_all(&self.file, data, &mut self.offset);
        written.map_err(|source| Error::HostTransfer {
            what: "write",
            path: self.path.clone(),
            offset: self.offset,
            source,
        })
    }

    /// Closes the file: a network file system may tell only now what it could not write.
    pub(super) fn close(self) -> Result<()> {
        close(self.file).map_err(|source| Error::Host {
            what: "close",
            path: self.path,
            source,
        })
    }
}

/// Writes all of `data`, and moves `offset` by what was written, also where not all was.
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
