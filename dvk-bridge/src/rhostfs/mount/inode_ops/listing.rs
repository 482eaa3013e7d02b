//! Open directories and their entries.

use std::ffi::{OsStr, OsString};

use fuser::FileType;
use gangplank_service::rate_limited;
use log::debug;
use rustix::io::Errno;

use super::super::attributes::{kind_of_entry, kind_of_mode};
use super::super::call_error::CallError;
use super::super::calls::Target;
use super::super::directories::{Directory, Entry, MAX_ENTRIES};
use super::super::nodes::ROOT;
use super::{InodeOps, Result};
use crate::abi::rhostfs::UsrDirent;

/// Number of entries before the server's: `.` and `..`.
const DOTS: usize = 2;

/// An entry for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Inode number.
    pub(crate) ino: u64,
    /// Kind of file.
    pub(crate) kind: FileType,
    /// Name.
    pub(crate) name: OsString,
    /// The position after it.
    pub(crate) next: u64,
}

impl InodeOps {
    /// Opens a directory.
    pub(crate) fn open_directory(&mut self, node: u64) -> Result<u64> {
        let path = self.path(node)?;
        let losses = self.calls.losses();
        let handle = match self.calls.open_directory(&path) {
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::NOTDIR) => {
                return Err(Errno::STALE);
            }
            handle => handle?,
        };
        self.nodes.opened(node);
        Ok(self.directories.add(Directory {
            node,
            handle,
            losses,
            entries: Vec::new(),
            complete: false,
            cookie: 0,
        }))
    }

    /// The entry at `position` of an open directory. The first two are `.` and `..`. `None` at the
    /// end.
    pub(crate) fn entry(&mut self, fh: u64, position: u64) -> Result<Option<Listed>> {
        let node = self.directories.get_mut(fh).ok_or(Errno::BADF)?.node;
        let next = position.saturating_add(1);
        let name = match position {
            0 => ".",
            1 => "..",
            _ => {
                let index = usize::try_from(position - 2).map_err(|_| Errno::INVAL)?;
                while self.directory(fh)?.entries.len() <= index {
                    if !self.fetch(fh)? {
                        return Ok(None);
                    }
                }
                let entry = self.directory(fh)?.entries.get(index).cloned();
                return match entry {
                    Some(entry) => self.listed(node, entry, next).map(Some),
                    None => Ok(None),
                };
            }
        };
        Ok(Some(Listed {
            // The kernel looks the parent up itself if a program asks.
            ino: if node == ROOT {
                ROOT
            } else {
                node & 0xffff_ffff
            },
            kind: FileType::Directory,
            name: name.into(),
            next,
        }))
    }

    /// Rewinds the list, so that it shows later changes.
    pub(crate) fn rewind(&mut self, fh: u64) -> Result<()> {
        self.register()?;
        let losses = self.calls.losses();
        let directory = self.directories.get_mut(fh).ok_or(Errno::BADF)?;
        let untouched = directory.entries.is_empty() && directory.cookie == 0;
        if untouched && !directory.complete && directory.losses == losses {
            return Ok(());
        }
        let (node, handle) = (directory.node, directory.handle);
        let same = directory.losses == losses;
        let handle = match same.then(|| self.calls.seek(handle, 0)) {
            Some(Ok(())) => handle,
            Some(Err(error)) if !error.is(Errno::BADF) => return Err(error.into()),
            _ => {
                let path = self.path(node)?;
                self.calls.open_directory(&path)?
            }
        };
        // The list changes only after the server has rewound. Otherwise it continues where it was.
        let directory = self.directory(fh)?;
        (directory.handle, directory.losses) = (handle, losses);
        directory.entries.clear();
        (directory.complete, directory.cookie) = (false, 0);
        Ok(())
    }

    /// Closes an open directory.
    pub(crate) fn close_directory(&mut self, fh: u64) {
        let Some(directory) = self.directories.remove(fh) else {
            return;
        };
        if directory.losses == self.calls.losses()
            && let Err(error) = self.calls.close_directory(directory.handle)
        {
            debug!("directory {} was not closed: {error}", directory.handle);
        }
        self.nodes.closed(directory.node);
    }

    /// Puts a directory's entries on stable storage. The protocol syncs files, and a directory can
    /// be opened as one.
    pub(crate) fn sync_directory(&mut self, node: u64, data_only: bool) -> Result<()> {
        let path = self.path(node)?;
        let handle = self.calls.open(&path, 0, 0)?;
        let synced = self.calls.sync(handle, data_only);
        if let Err(error) = self.calls.close(handle) {
            debug!("handle {handle} was not closed: {error}");
        }
        Ok(synced?)
    }

    /// Fetches one more entry. Returns whether there was one.
    fn fetch(&mut self, fh: u64) -> Result<bool> {
        let losses = self.calls.losses();
        let directory = self.directory(fh)?;
        if directory.complete {
            return Ok(false);
        }
        if directory.losses != losses {
            // Another file system may list entries in another order, so a list cannot continue
            // there.
            return Err(Errno::STALE);
        }
        if directory.entries.len() >= MAX_ENTRIES {
            rate_limited!(
                warn,
                "a directory has more than {MAX_ENTRIES} entries, which cannot be listed"
            );
            return Err(Errno::OVERFLOW);
        }
        for _ in 0..=DOTS {
            let Some(entry) = self.next_entry(fh)? else {
                self.directory(fh)?.complete = true;
                return Ok(false);
            };
            self.directory(fh)?.cookie = entry.off;
            match Entry::from_wire(&entry) {
                Some(entry) if entry.is_dot() => {}
                Some(entry) => {
                    self.directory(fh)?.entries.push(entry);
                    return Ok(true);
                }
                None => break,
            }
        }
        rate_limited!(warn, "the server listed an invalid name");
        Err(Errno::IO)
    }

    /// The server's next entry. A server that keeps few directories open may have closed this one.
    /// It is then opened again, and the list continues after the last entry.
    fn next_entry(&mut self, fh: u64) -> Result<Option<UsrDirent>> {
        let losses = self.calls.losses();
        let directory = self.directory(fh)?;
        let (node, handle, cookie) = (directory.node, directory.handle, directory.cookie);
        let started = !directory.entries.is_empty();
        match self.calls.next_entry(handle) {
            Err(error) if error.is(Errno::BADF) && self.calls.dialect().has_stable_cookies() => {}
            entry => return Ok(entry?),
        }
        if started && cookie == 0 {
            return Err(Errno::STALE);
        }
        debug!("opening the directory {node:#x} again");
        let path = self.path(node)?;
        let handle = self.calls.open_directory(&path)?;
        self.directory(fh)?.handle = handle;
        if self.calls.losses() != losses {
            return Err(Errno::STALE);
        }
        if cookie != 0 {
            self.calls.seek(handle, cookie)?;
        }
        Ok(self.calls.next_entry(handle)?)
    }

    fn listed(&mut self, parent: u64, entry: Entry, next: u64) -> Result<Listed> {
        let kind = match kind_of_entry(entry.kind) {
            Some(kind) => kind,
            None => self.kind_of(parent, &entry.name)?,
        };
        Ok(Listed {
            ino: u64::from(entry.ino),
            kind,
            name: entry.name,
            next,
        })
    }

    /// The kind of an entry that the server lists without one. If the server refuses to tell,
    /// because the file was removed or a link is broken, any kind will do.
    fn kind_of(&mut self, parent: u64, name: &OsStr) -> Result<FileType> {
        let path = match self.path_of(parent, name) {
            Err(Errno::STALE | Errno::NAMETOOLONG) => return Ok(FileType::RegularFile),
            path => path?,
        };
        match self.calls.stat(Target::Path(&path)) {
            Ok(stat) => Ok(kind_of_mode(stat.mode)),
            Err(CallError::Refused { .. }) => Ok(FileType::RegularFile),
            Err(error) => Err(error.into()),
        }
    }

    fn directory(&mut self, fh: u64) -> Result<&mut Directory> {
        self.directories.get_mut(fh).ok_or(Errno::BADF)
    }
}
