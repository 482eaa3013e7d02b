//! Open files, and what is in them.

use std::ffi::OsStr;

use log::debug;
use rustix::io::Errno;

use super::super::calls::{CallError, Calls, Target};
use super::super::files::OpenFile;
use super::{Creator, Result, View, identity};
use crate::abi::rhostfs::UsrStat;

/// i386's flags of `open`, as far as a server needs them.
const O_ACCMODE: i32 = 0o3;
const O_CREAT: i32 = 0o100;
const O_EXCL: i32 = 0o200;
const O_APPEND: i32 = 0o2000;

impl View {
    /// Opens a file. `flags` are Linux's; they are the same on i386 as far as they matter.
    pub(crate) fn open(&mut self, node: u64, flags: i32) -> Result<u64> {
        let flags = flags & (O_ACCMODE | O_APPEND);
        let (handle, losses) = self.open_node(node, flags)?;
        Ok(self.add_file(node, handle, flags, losses))
    }

    /// Makes and opens a file. Where somebody else was quicker, and the caller does not mind, theirs is opened.
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
                (self.calls.open(&path, kept | O_CREAT, mode)?, false)
            }
            Err(error) => return Err(error.into()),
        };
        let told = if self.calls.dialect().stats_handles() {
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
            self.give(Target::Handle(handle), parent, &mut stat, mode, creator);
        }
        let node = self.adopt(parent, name, &stat);
        self.nodes.looked_up(node);
        Ok((node, stat, self.add_file(node, handle, kept, losses)))
    }

    /// Reads up to `size` bytes from `position`; less at the end of the file.
    pub(crate) fn read(&mut self, fh: u64, position: u64, size: usize) -> Result<Vec<u8>> {
        let dialect = self.calls.dialect();
        let mut size = size;
        if !dialect.tells_end() {
            let file = self.files.get(fh).ok_or(Errno::BADF)?;
            let end = self.stat(file.node, None)?.whole_size();
            let left = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
            size = size.min(left);
        }
        let mut data = vec![0; size];
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let length = rest.len().min(dialect.piece());
            let at = position.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            if at > dialect.largest() {
                break;
            }
            let Some(piece) = rest.get_mut(..length) else {
                break;
            };
            let got = self.with_file(fh, |calls, handle| calls.read_piece(handle, at, piece));
            match got {
                Ok(got) => {
                    done += got;
                    if got < length {
                        break;
                    }
                }
                // What has come is good; the rest is asked for again, and the error told then.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        data.truncate(done);
        Ok(data)
    }

    /// Writes `data` at `position`; returns how much of it.
    pub(crate) fn write(&mut self, fh: u64, position: u64, data: &[u8]) -> Result<usize> {
        let dialect = self.calls.dialect();
        // A larger file could not be looked at any more.
        let room = dialect.largest().saturating_sub(position);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        if room == 0 && !data.is_empty() {
            return Err(Errno::FBIG);
        }
        let data = data.get(..room).unwrap_or(data);
        let mut done = 0;
        for piece in data.chunks(dialect.piece()) {
            let at = position.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match self.with_file(fh, |calls, handle| calls.write_piece(handle, at, piece)) {
                Ok(written) => {
                    done += written;
                    if written < piece.len() {
                        break;
                    }
                }
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Puts the file on stable storage.
    pub(crate) fn sync(&mut self, fh: u64, data_only: bool) -> Result<()> {
        self.with_file(fh, |calls, handle| calls.sync(handle, data_only))
    }

    /// Closes an open file.
    pub(crate) fn close(&mut self, fh: u64) {
        let Some(file) = self.files.remove(fh) else {
            return;
        };
        self.close_lost_or_not(&file);
        self.nodes.closed(file.node);
    }

    /// Does `call` with the handle of the open file `fh`; with a new one if the server has lost the old.
    pub(super) fn with_file<T>(
        &mut self,
        fh: u64,
        mut call: impl FnMut(&mut Calls, i32) -> std::result::Result<T, CallError>,
    ) -> Result<T> {
        self.greet()?;
        let file = self.files.get(fh).ok_or(Errno::BADF)?;
        if file.losses == self.calls.losses() {
            match call(&mut self.calls, file.handle) {
                // A server that has started again between two calls knows no handle.
                Err(error) if error.is(Errno::BADF) => {}
                done => return Ok(done?),
            }
        }
        self.close_lost_or_not(&file);
        let (handle, losses) = self.open_node(file.node, file.flags)?;
        debug!("opened node {:#x} again", file.node);
        self.files.reopened(fh, handle, losses);
        Ok(call(&mut self.calls, handle)?)
    }

    /// Opens a file that is known, and makes sure that it is still the one: the handle, and how often the server had been lost
    /// when it was asked for.
    fn open_node(&mut self, node: u64, flags: i32) -> Result<(i32, u64)> {
        let path = self.path(node)?;
        let losses = self.calls.losses();
        let handle = match self.calls.open(&path, flags, 0) {
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::NOTDIR) => {
                return Err(Errno::STALE);
            }
            handle => handle?,
        };
        let told = if self.calls.dialect().stats_handles() {
            self.calls.stat(Target::Handle(handle))
        } else {
            self.calls.stat(Target::Path(&path))
        };
        match told {
            Ok(stat) if self.is(node, &stat) => {
                self.note(node, &stat);
                Ok((handle, losses))
            }
            Ok(stat) => {
                self.close_handle(handle);
                self.nodes.unbind_all(node);
                if self.nodes.identity(node) == Some(identity(&stat)) {
                    // Its number is given to another, so that it is nowhere any more.
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

    fn add_file(&mut self, node: u64, handle: i32, flags: i32, losses: u64) -> u64 {
        self.nodes.opened(node);
        self.files.add(OpenFile {
            node,
            handle,
            flags,
            losses,
        })
    }

    /// Closes an open file's handle. A server that was lost may hold it all the same; one that does not knows no such handle,
    /// but for the original, which may have given its number to another file.
    fn close_lost_or_not(&mut self, file: &OpenFile) {
        if file.losses == self.calls.losses() || self.calls.dialect().tells_handles_apart() {
            self.close_handle(file.handle);
        }
    }

    /// Closes a handle; that it could not be closed is nobody's concern but the log's.
    fn close_handle(&mut self, handle: i32) {
        if let Err(error) = self.calls.close(handle) {
            debug!("handle {handle} was not closed: {error}");
        }
    }
}
