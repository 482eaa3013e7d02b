//! Open files and their data.

use std::ffi::OsStr;

use gangplank_service::rate_limited;
use log::debug;
use rustix::io::Errno;

use super::super::call_error::CallError;
use super::super::calls::{Calls, Target};
use super::super::files::OpenFile;
use super::arguments::{Creator, Extent};
use super::{InodeOps, Result, identity};
use crate::abi::rhostfs::UsrStat;

/// Flags of `open` that a server needs, as i386 numbers.
const O_ACCMODE: i32 = 0o3;
const O_CREAT: i32 = 0o100;
const O_EXCL: i32 = 0o200;
const O_APPEND: i32 = 0o2000;
const O_WRONLY: i32 = 1;
const O_TRUNC: i32 = 0o1000;

impl InodeOps {
    /// Opens a file. `flags` are Linux's, and those that matter are the same on i386.
    pub(crate) fn open(&mut self, node: u64, flags: i32) -> Result<u64> {
        let flags = flags & (O_ACCMODE | O_APPEND);
        let (handle, losses, size) = self.open_node(node, flags)?;
        Ok(self.add_file(node, handle, flags, losses, size))
    }

    /// Creates and opens a file. If another client created it first and `flags` allow that, it is
    /// opened.
    pub(crate) fn create(
        &mut self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
        creator: Creator,
    ) -> Result<(u64, UsrStat, u64)> {
        let path = self.path_of(parent, name)?;
        let losses = self.calls.losses();
        let kept = flags & (O_ACCMODE | O_APPEND);
        let (handle, is_new) = match self.calls.open(&path, kept | O_CREAT | O_EXCL, mode) {
            Ok(handle) => (handle, true),
            Err(error) if error.is(Errno::EXIST) && flags & O_EXCL == 0 => {
                // The kernel takes the file for new and does not truncate it again.
                let flags = kept | O_CREAT | flags & O_TRUNC;
                (self.calls.open(&path, flags, mode)?, false)
            }
            Err(error) => return Err(error.into()),
        };
        let told = if self.calls.dialect().has_fstat() {
            self.calls.stat(Target::Handle(handle))
        } else {
            self.calls.stat(Target::Path(&path))
        };
        let mut stat = match told {
            Ok(stat) => stat,
            Err(error) => {
                self.close_handle(handle);
                return Err(error.into());
            }
        };
        if is_new {
            self.change_owner(Target::Handle(handle), parent, &mut stat, mode, creator);
        }
        let node = self.adopt(parent, name, &stat);
        self.nodes.looked_up(node);
        let size = stat.whole_size();
        Ok((node, stat, self.add_file(node, handle, kept, losses, size)))
    }

    /// Reads up to `size` bytes from `position`. The result is shorter at the end of the file, and
    /// with [`Extent::Any`] also before an error.
    pub(crate) fn read(
        &mut self,
        fh: u64,
        position: u64,
        size: usize,
        extent: Extent,
    ) -> Result<Vec<u8>> {
        let dialect = self.calls.dialect();
        let node = self.files.get(fh).ok_or(Errno::BADF)?.node;
        let mut size = size;
        if !dialect.reports_end() {
            let end = self.stat(node, None)?.whole_size();
            let left = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
            size = size.min(left);
        }
        let mut data = vec![0; size];
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let length = rest.len().min(dialect.piece());
            let at = offset(position, done);
            if at > dialect.largest() {
                break;
            }
            let Some(piece) = rest.get_mut(..length) else {
                break;
            };
            let got = self.with_file(fh, |calls, handle| calls.read_piece(handle, at, piece));
            match got {
                Ok(0) => break,
                Ok(got) => {
                    done += got;
                    // A short count is the end only at the known size of the file. Otherwise the
                    // next read returns nothing at the end, or the error.
                    if got < length && offset(position, done) >= self.files.size(node) {
                        break;
                    }
                }
                // The data so far is valid. A read of the rest meets the error again.
                Err(_) if done > 0 && extent == Extent::Any => break,
                Err(error) => return Err(error),
            }
        }
        data.truncate(done);
        Ok(data)
    }

    /// Writes `data` at `position` and returns the count, which is all of it with
    /// [`Extent::Whole`].
    pub(crate) fn write(
        &mut self,
        fh: u64,
        position: u64,
        data: &[u8],
        extent: Extent,
    ) -> Result<usize> {
        // A larger file could not be read.
        let room = self.calls.dialect().largest().saturating_sub(position);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        if data.len() > room && (room == 0 || extent == Extent::Whole) {
            return Err(Errno::FBIG);
        }
        let data = data.get(..room).unwrap_or(data);
        let file = self.files.get(fh).ok_or(Errno::BADF)?;
        if extent == Extent::Whole && file.flags & O_APPEND != 0 {
            return self.write_page(fh, file, position, data);
        }
        self.write_pieces(data, extent, |ops, done, piece| {
            let at = offset(position, done);
            ops.with_file(fh, |calls, handle| calls.write_piece(handle, at, piece))
                .inspect(|written| ops.files.wrote(fh, offset(at, *written)))
        })
    }

    /// Writes a page of a mapping at its position. The server would append data through a handle
    /// that was opened to append.
    fn write_page(&mut self, fh: u64, file: OpenFile, position: u64, data: &[u8]) -> Result<usize> {
        let (handle, ..) = self.open_node(file.node, O_WRONLY)?;
        let written = self.write_pieces(data, Extent::Whole, |ops, done, piece| {
            let at = offset(position, done);
            let written = ops.calls.write_piece(handle, at, piece)?;
            ops.files.wrote(fh, offset(at, written));
            Ok(written)
        });
        // An error of this close belongs to the written data.
        let closed = self.calls.close(handle);
        let written = written?;
        closed?;
        Ok(written)
    }

    /// Writes `data` piece by piece, and repeats after partial writes.
    fn write_pieces(
        &mut self,
        data: &[u8],
        extent: Extent,
        mut write: impl FnMut(&mut Self, usize, &[u8]) -> Result<usize>,
    ) -> Result<usize> {
        let longest = self.calls.dialect().piece();
        let mut done = 0;
        while let Some(rest @ [_, ..]) = data.get(done..) {
            let piece = rest.get(..longest).unwrap_or(rest);
            let written = match write(self, done, piece) {
                // No file system answers zero, and a repetition might never end.
                Ok(0) => Err(Errno::IO),
                written => written,
            };
            match written {
                Ok(written) => done += written,
                // The count so far is returned. A write of the rest meets the error again.
                Err(_) if done > 0 && extent == Extent::Any => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Asks the server for write errors, if data was written through the open file `fh` since the
    /// last question.
    ///
    /// # Errors
    ///
    /// EIO if the server was lost with unsynced data, until [`Self::sync`] has reported it.
    pub(crate) fn flush(&mut self, fh: u64) -> Result<()> {
        let file = self.files.get(fh).ok_or(Errno::BADF)?;
        let lost = file.losses != self.calls.losses();
        if file.doubtful || (lost && file.unsynced) {
            return Err(Errno::IO);
        }
        if lost || !file.unflushed || !self.calls.dialect().flushes() {
            return Ok(());
        }
        match self.calls.flush(file.handle) {
            // A restarted server does not know the handle.
            Err(error) if error.is(Errno::BADF) => {
                if file.unsynced {
                    Err(Errno::IO)
                } else {
                    Ok(())
                }
            }
            Err(error) => Err(error.into()),
            Ok(()) => {
                self.files.flushed(fh);
                Ok(())
            }
        }
    }

    /// Puts the file on stable storage.
    pub(crate) fn sync(&mut self, fh: u64, data_only: bool) -> Result<()> {
        self.with_file(fh, |calls, handle| calls.sync(handle, data_only))?;
        if self.files.synced(fh) {
            // The server was lost after data was written. Its machine may have crashed with
            // unwritten data, which only this error reports.
            return Err(Errno::IO);
        }
        Ok(())
    }

    /// Closes an open file.
    pub(crate) fn close(&mut self, fh: u64) {
        let Some(file) = self.files.remove(fh) else {
            return;
        };
        self.close_lost_or_not(&file);
        self.nodes.closed(file.node);
    }

    /// Runs `call` with the handle of the open file `fh`, or with a new handle if the server lost
    /// the old one.
    pub(super) fn with_file<T>(
        &mut self,
        fh: u64,
        mut call: impl FnMut(&mut Calls, i32) -> std::result::Result<T, CallError>,
    ) -> Result<T> {
        self.register()?;
        let file = self.files.get(fh).ok_or(Errno::BADF)?;
        if file.losses == self.calls.losses() {
            match call(&mut self.calls, file.handle) {
                // A server that restarted between two calls does not know the handle.
                Err(error) if error.is(Errno::BADF) => {}
                done => return Ok(done?),
            }
        }
        self.close_lost_or_not(&file);
        let (handle, losses, _) = self.open_node(file.node, file.flags)?;
        debug!("opened node {:#x} again", file.node);
        self.files.reopened(fh, handle, losses);
        Ok(call(&mut self.calls, handle)?)
    }

    /// Opens a known file, and checks that it is still the same one. Returns the handle, the count
    /// of losses before the open, and the file's size.
    fn open_node(&mut self, node: u64, flags: i32) -> Result<(i32, u64, u64)> {
        let path = self.path(node)?;
        let losses = self.calls.losses();
        let handle = match self.calls.open(&path, flags, 0) {
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::NOTDIR) => {
                return Err(Errno::STALE);
            }
            handle => handle?,
        };
        let told = if self.calls.dialect().has_fstat() {
            self.calls.stat(Target::Handle(handle))
        } else {
            self.calls.stat(Target::Path(&path))
        };
        match told {
            Ok(stat) if self.is(node, &stat) => {
                self.note(node, &stat);
                Ok((handle, losses, stat.whole_size()))
            }
            Ok(stat) => {
                self.close_handle(handle);
                self.nodes.unbind_all(node);
                if self.nodes.identity(node) == Some(identity(&stat)) {
                    // Its inode number belongs to another file, so the file no longer exists.
                    self.nodes.end(node);
                }
                Err(Errno::STALE)
            }
            Err(error) => {
                self.close_handle(handle);
                Err(error.into())
            }
        }
    }

    fn add_file(&mut self, node: u64, handle: i32, flags: i32, losses: u64, size: u64) -> u64 {
        self.nodes.opened(node);
        let fh = self.files.add(OpenFile {
            node,
            handle,
            flags,
            losses,
            unsynced: false,
            unflushed: false,
            doubtful: false,
        });
        self.files.note_size(node, size);
        fh
    }

    /// Closes the handle of an open file after a possible loss of the server. A server that kept it
    /// closes it. Another answers that it does not know the handle. The original is not asked,
    /// because it may have reused the number.
    fn close_lost_or_not(&mut self, file: &OpenFile) {
        if file.losses == self.calls.losses() || self.calls.dialect().has_unique_handles() {
            self.close_handle(file.handle);
        }
    }

    /// Closes a handle, and logs an error.
    fn close_handle(&mut self, handle: i32) {
        match self.calls.close(handle) {
            Ok(()) => {}
            Err(error @ CallError::Refused { .. }) if !error.is(Errno::BADF) => {
                // A program wrote to a mapping after it closed the file. No program asks for that
                // error.
                rate_limited!(
                    warn,
                    "closing handle {handle} reports what could not be written: {error}"
                );
            }
            Err(error) => debug!("handle {handle} was not closed: {error}"),
        }
    }
}

/// The position `done` bytes after `position`.
fn offset(position: u64, done: usize) -> u64 {
    position.saturating_add(u64::try_from(done).unwrap_or(u64::MAX))
}
