//! Open directories, and what is in them.

use std::ffi::{OsStr, OsString};

use fuser::FileType;
use log::{debug, warn};
use rustix::io::Errno;

use super::super::attributes::{kind_of_entry, kind_of_mode};
use super::super::calls::Target;
use super::super::directories::{Directory, Entry, MOST_ENTRIES};
use super::super::nodes::ROOT;
use super::{Result, View};

/// Entries of a directory that name itself and the one above.
const DOTS: usize = 2;

/// An entry as the kernel is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Inode number.
    pub(crate) ino: u64,
    /// Kind of file.
    pub(crate) kind: FileType,
    /// Name.
    pub(crate) name: OsString,
    /// The position behind it.
    pub(crate) next: u64,
}

impl View {
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
        }))
    }

    /// The entry at `position` of an open directory, the first two being the directory itself and the one above; nothing at
    /// the end.
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
            // The one above is known to the kernel if anybody asks.
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

    /// Starts the list anew, so that it has what has changed since.
    pub(crate) fn rewind(&mut self, fh: u64) -> Result<()> {
        self.greet()?;
        let losses = self.calls.losses();
        let directory = self.directories.get_mut(fh).ok_or(Errno::BADF)?;
        if directory.entries.is_empty() && !directory.complete && directory.losses == losses {
            return Ok(());
        }
        directory.entries.clear();
        directory.complete = false;
        let (node, handle) = (directory.node, directory.handle);
        if directory.losses == losses {
            match self.calls.rewind(handle) {
                Err(error) if error.is(Errno::BADF) => {}
                done => return Ok(done?),
            }
        }
        let path = self.path(node)?;
        let handle = self.calls.open_directory(&path)?;
        let directory = self.directory(fh)?;
        (directory.handle, directory.losses) = (handle, losses);
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

    /// Puts a directory's entries on stable storage. The protocol does that for files; a directory can be opened as one.
    pub(crate) fn sync_directory(&mut self, node: u64, data_only: bool) -> Result<()> {
        let path = self.path(node)?;
        let handle = self.calls.open(&path, 0, 0)?;
        let synced = self.calls.sync(handle, data_only);
        if let Err(error) = self.calls.close(handle) {
            debug!("handle {handle} was not closed: {error}");
        }
        Ok(synced?)
    }

    /// Fetches one more entry; whether there was one.
    fn fetch(&mut self, fh: u64) -> Result<bool> {
        let losses = self.calls.losses();
        let directory = self.directory(fh)?;
        if directory.complete {
            return Ok(false);
        }
        if directory.losses != losses {
            // In the middle of a list there is no telling what another would have in which order.
            return Err(Errno::STALE);
        }
        if directory.entries.len() >= MOST_ENTRIES {
            warn!("a directory has more than {MOST_ENTRIES} entries; it is cut there");
            directory.complete = true;
            return Ok(false);
        }
        let handle = directory.handle;
        for _ in 0..=DOTS {
            let Some(entry) = self.calls.next_entry(handle)? else {
                self.directory(fh)?.complete = true;
                return Ok(false);
            };
            match Entry::from_wire(&entry) {
                Some(entry) if entry.is_dot() => {}
                Some(entry) => {
                    self.directory(fh)?.entries.push(entry);
                    return Ok(true);
                }
                None => break,
            }
        }
        warn!("the server listed what cannot be a name");
        Err(Errno::IO)
    }

    fn listed(&mut self, parent: u64, entry: Entry, next: u64) -> Result<Listed> {
        let kind = match kind_of_entry(entry.kind) {
            Some(kind) => kind,
            None => self.kind_of(parent, &entry.name),
        };
        Ok(Listed {
            ino: u64::from(entry.ino),
            kind,
            name: entry.name,
            next,
        })
    }

    /// The kind of what a list names without telling it. If it has gone meanwhile, any will do.
    fn kind_of(&mut self, parent: u64, name: &OsStr) -> FileType {
        self.path_of(parent, name)
            .ok()
            .and_then(|path| self.calls.stat(Target::Path(&path)).ok())
            .map_or(FileType::RegularFile, |stat| kind_of_mode(stat.mode))
    }

    fn directory(&mut self, fh: u64) -> Result<&mut Directory> {
        self.directories.get_mut(fh).ok_or(Errno::BADF)
    }
}
