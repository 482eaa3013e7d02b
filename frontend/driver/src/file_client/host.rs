//! Files of the host, read into shared memory without a copy.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::{ReadVolatile, VolatileMemoryError, WriteVolatile};

use super::error::{Error, Result};
use super::transfer::Holes;
use crate::{Data, FuseSession};

/// A file of the host, read from its present position. `path` is for messages.
#[derive(Debug)]
pub(super) struct HostReader {
    file: File,
    path: PathBuf,
    offset: u64,
    /// Where the data at `offset` ends: at a hole. `u64::MAX` if the file does not tell, or its
    /// holes are read as zeros.
    data_end: u64,
    holes: Holes,
    /// Where reading ends, at the latest.
    limit: u64,
    /// The error that ended a piece after its first byte. A socket or a pipe reports an error only
    /// once.
    failed: Option<io::Error>,
}

impl HostReader {
    /// Reads from the file's present position, or from its beginning without its holes.
    pub(super) fn new(file: File, path: PathBuf, holes: Holes) -> Self {
        Self {
            file,
            path,
            offset: 0,
            data_end: match holes {
                Holes::Read => u64::MAX,
                Holes::Skip => 0,
            },
            holes,
            limit: u64::MAX,
            failed: None,
        }
    }

    /// Reads a range of a file that can be positioned.
    pub(super) fn of_range(
        file: File,
        path: PathBuf,
        range: Range<u64>,
        holes: Holes,
    ) -> Result<Self> {
        let mut reader = Self::new(file, path, holes);
        let placed = seek(&reader.file, SeekFrom::Start(range.start));
        placed.map_err(|errno| reader.refused(errno.into()))?;
        reader.offset = range.start;
        reader.limit = range.end;
        if holes == Holes::Skip {
            reader.data_end = range.start;
        }
        Ok(reader)
    }

    /// Whether holes are left out.
    pub(super) const fn has_holes(&self) -> bool {
        matches!(self.holes, Holes::Skip)
    }

    /// Bytes before the present position: the length of the file at its end.
    pub(super) const fn len(&self) -> u64 {
        self.offset
    }

    /// The next piece, up to `room` bytes, with its offset; `None` at the end. Data read before an
    /// error is a piece; the next call returns the error.
    pub(super) fn next(
        &mut self,
        session: &FuseSession,
        room: usize,
    ) -> Result<Option<(u64, Data)>> {
        if let Some(error) = self.failed.take() {
            return Err(self.refused(error));
        }
        if self.offset >= self.limit || (self.offset >= self.data_end && !self.find_data()?) {
            return Ok(None);
        }
        if self.offset >= self.limit {
            self.offset = self.limit;
            return Ok(None);
        }
        let offset = self.offset;
        let left = usize::try_from(self.data_end.min(self.limit) - offset).unwrap_or(usize::MAX);
        let room = room.min(left);
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
        Ok((filled != 0).then(|| (offset, Data::new(buffer, filled))))
    }

    /// Goes to the next data. Returns false if a hole reaches to the end of the file.
    fn find_data(&mut self) -> Result<bool> {
        let error = |errno: Errno| self.refused(errno.into());
        match seek(&self.file, SeekFrom::Data(self.offset)) {
            Ok(data) => {
                let hole = seek(&self.file, SeekFrom::Hole(data)).map_err(error)?;
                seek(&self.file, SeekFrom::Start(data)).map_err(error)?;
                // Another program may have removed the data meanwhile.
                (self.offset, self.data_end) = (data, hole.max(data + 1));
                Ok(true)
            }
            Err(Errno::NXIO) => {
                let end = seek(&self.file, SeekFrom::End(0)).map_err(error)?;
                if end > self.offset {
                    self.offset = end.min(self.limit);
                    return Ok(false);
                }
                // Files of procfs and others have data behind their end.
                seek(&self.file, SeekFrom::Start(self.offset)).map_err(error)?;
                self.data_end = u64::MAX;
                Ok(true)
            }
            // The file does not tell where its data is: a pipe, or an old file system.
            Err(_) => {
                self.data_end = u64::MAX;
                Ok(true)
            }
        }
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
