//! Files that get their name when they are complete: nobody sees a half of one, and what had the
//! name before stays until then.

use std::ffi::CString;
use std::rc::Rc;
use std::time::SystemTime;

use gangplank_fuse::{CreateIn, SetattrIn, SetattrValid};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::change::names_no_directory;
use super::error::{Error, Result};
use super::open_file::{OpenFile, refused};
use super::path::{LastLink, Located, Node, Share, join, text};
use crate as driver;

/// Names to try for a temporary file.
const MAX_ATTEMPTS: u32 = 16;

/// Permission bits that a copy takes over.
const PERMISSIONS: u32 = 0o777;

/// Where a file arrives.
#[derive(Debug)]
pub(super) struct Destination {
    parent: Rc<Node>,
    name: CString,
    /// The file that has the name now.
    there: Option<Rc<Node>>,
    /// What the user typed, for messages.
    path: String,
}

/// A file of the share with a temporary name, until [`NewFile::publish`]. Dropping it removes it.
pub(super) struct NewFile<'a> {
    share: &'a Share,
    to: Destination,
    temporary: CString,
    file: Option<OpenFile<'a>>,
    is_published: bool,
    /// Whether the temporary file stays if the copy fails, for another copy to continue it.
    is_kept: bool,
}

impl Destination {
    /// The name `name` in `parent`, which the file `there` has now. `path` is for messages.
    pub(super) const fn new(
        parent: Rc<Node>,
        name: CString,
        there: Option<Rc<Node>>,
        path: String,
    ) -> Self {
        Self {
            parent,
            name,
            there,
            path,
        }
    }
}

impl Share {
    /// The place of a file that is copied to `to`: inside `to`, as `name`, if that is a directory.
    /// Fails if that is the file `other`, or no regular file.
    pub(super) fn destination_of_copy(
        &self,
        to: &[u8],
        name: &CString,
        other: Option<&Node>,
    ) -> Result<Destination> {
        let found = match self.locate_if_there(to)? {
            Some(found) if found.node.kind() == FileType::Directory => {
                let inside = join(to, name.as_bytes());
                match self.locate_if_there(&inside)? {
                    None => {
                        return Ok(Destination {
                            parent: found.node,
                            name: name.clone(),
                            there: None,
                            path: text(to),
                        });
                    }
                    inside => inside,
                }
            }
            Some(_) if to.ends_with(b"/") => return Err(Error::NotDirectory(text(to))),
            found => found,
        };
        let Some(Located { node, place }) = found else {
            names_no_directory(to)?;
            let (parent, name) = self.parent(to)?;
            return Ok(Destination {
                parent,
                name,
                there: None,
                path: text(to),
            });
        };
        self.must_be_regular(&node, &text(to))?;
        if other.is_some_and(|other| other.id == node.id) {
            return Err(Error::Path {
                path: text(to),
                why: "it is the same file",
            });
        }
        let (parent, name) = place.ok_or_else(|| Error::Directory(text(to)))?;
        Ok(Destination {
            parent,
            name,
            there: Some(node),
            path: text(to),
        })
    }

    fn locate_if_there(&self, path: &[u8]) -> Result<Option<Located>> {
        match self.locate(path, LastLink::Follow) {
            Ok(found) => Ok(Some(found)),
            Err(Error::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the file that will be at `to`, in the same directory. `mode` is for a name that does
    /// not exist yet. A file that exists passes its permissions on, and must be writable.
    pub(super) fn begin_new(&self, to: Destination, mode: u32) -> Result<NewFile<'_>> {
        let mut mode = mode & PERMISSIONS;
        if let Some(old) = &to.there {
            self.must_be_writable(old, &to.path)?;
            mode = old.attr.mode & PERMISSIONS;
        }
        let (temporary, file) = self.create_temporary(&to, mode)?;
        let new = NewFile {
            share: self,
            to,
            temporary,
            file: Some(file),
            is_published: false,
            is_kept: false,
        };
        new.take_over_owner(mode);
        Ok(new)
    }

    /// Fails if the file cannot be opened for writing.
    pub(super) fn must_be_writable(&self, file: &Rc<Node>, path: &str) -> Result<()> {
        let opened = self.open_node(file, OFlags::WRONLY, path)?;
        drop(OpenFile::new(self, Rc::clone(file), &opened, path));
        Ok(())
    }

    /// Continues the file `partial`, whose name is `temporary`, behind as many bytes as said, or
    /// begins one of that name. It stays if the copy fails.
    pub(super) fn continue_new(
        &self,
        to: Destination,
        temporary: CString,
        partial: Option<(&Rc<Node>, u64)>,
        mode: u32,
    ) -> Result<NewFile<'_>> {
        let file = match partial {
            Some((partial, start)) => {
                let opened = self.open_node(partial, OFlags::WRONLY, &to.path)?;
                let file = OpenFile::new(self, Rc::clone(partial), &opened, &to.path);
                let args = SetattrIn {
                    valid: (SetattrValid::SIZE | SetattrValid::FH).bits(),
                    fh: file.file.get(),
                    size: start,
                    ..SetattrIn::default()
                };
                let cut = self.session.setattr(partial.id, args);
                cut.map_err(|source| refused("cut", &to.path, source))?;
                file
            }
            None => {
                let created = self.create_named(&to, &temporary, mode & PERMISSIONS);
                created.map_err(|source| refused("make", &to.path, source))?
            }
        };
        Ok(NewFile {
            share: self,
            to,
            temporary,
            file: Some(file),
            is_published: false,
            is_kept: true,
        })
    }

    /// Makes the temporary file of that name, which no file may have.
    fn create_named(
        &self,
        to: &Destination,
        name: &CString,
        mode: u32,
    ) -> driver::Result<OpenFile<'_>> {
        let args = CreateIn {
            flags: (OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::LARGEFILE).bits(),
            mode: FileType::RegularFile.as_raw_mode() | mode,
            umask: 0,
            open_flags: 0,
        };
        let (entry, opened) = self.session.create(to.parent.id, name, args)?;
        let node = Rc::new(Node::of(&self.session, &entry));
        Ok(OpenFile::new(self, node, &opened, &to.path))
    }

    fn create_temporary(&self, to: &Destination, mode: u32) -> Result<(CString, OpenFile<'_>)> {
        let mut attempt = 0;
        loop {
            let name = temporary_name(attempt);
            match self.create_named(to, &name, mode) {
                Ok(file) => return Ok((name, file)),
                Err(error) if error.errno() == Some(Errno::EXIST) && attempt + 1 < MAX_ATTEMPTS => {
                    attempt += 1;
                }
                Err(error) => return Err(refused("make", &to.path, error)),
            }
        }
    }
}

impl<'a> NewFile<'a> {
    /// The open file.
    ///
    /// # Errors
    /// None before [`NewFile::publish`].
    pub(super) fn file(&self) -> Result<&OpenFile<'a>> {
        self.file.as_ref().ok_or_else(|| Error::Path {
            path: self.to.path.clone(),
            why: "it is closed already",
        })
    }

    /// What the file will be called, for messages.
    pub(super) fn path(&self) -> &str {
        &self.to.path
    }

    /// Sets the file's length, closes it, and gives it its name.
    pub(super) fn publish(self, len: u64) -> Result<()> {
        self.publish_with(len, |_| Ok(()))
    }

    /// As [`NewFile::publish`]. `prepare` changes the closed file before it gets its name.
    pub(super) fn publish_with(
        mut self,
        len: u64,
        prepare: impl FnOnce(&Rc<Node>) -> Result<()>,
    ) -> Result<()> {
        let path = self.to.path.as_str();
        let node = Rc::clone(&self.file()?.node);
        // A hole at the end was not written.
        let args = SetattrIn {
            valid: (SetattrValid::SIZE | SetattrValid::FH).bits(),
            fh: self.file()?.file.get(),
            size: len,
            ..SetattrIn::default()
        };
        let cut = self.share.session.setattr(self.file()?.node.id, args);
        cut.map_err(|source| refused("set the length of", path, source))?;
        self.file.take().map_or(Ok(()), OpenFile::close)?;
        prepare(&node)?;
        let path = self.to.path.as_str();
        let (parent, name) = (self.to.parent.id, &self.to.name);
        let renamed = self
            .share
            .session
            .rename(parent, &self.temporary, parent, name);
        renamed.map_err(|source| refused("replace", path, source))?;
        self.is_published = true;
        Ok(())
    }

    /// Gives the file to the owner of the one that it replaces, where the daemon permits it.
    fn take_over_owner(&self, mode: u32) {
        let (Some(old), Some(file)) = (&self.to.there, &self.file) else {
            return;
        };
        let (old, new) = (&old.attr, &file.node.attr);
        if (old.uid, old.gid) == (new.uid, new.gid) {
            return;
        }
        let args = SetattrIn {
            valid: (SetattrValid::UID | SetattrValid::GID | SetattrValid::MODE).bits(),
            uid: old.uid,
            gid: old.gid,
            mode: FileType::RegularFile.as_raw_mode() | mode,
            ..SetattrIn::default()
        };
        // Only root may. Everybody else's copy is their own.
        let _ = self.share.session.setattr(file.node.id, args);
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.is_published {
            drop(self.file.take());
            if self.is_kept {
                return;
            }
            // Another error is on its way to the caller already.
            let _ = self
                .share
                .session
                .unlink(self.to.parent.id, &self.temporary);
        }
    }
}

/// A name that no other file has: hidden, and another one for each process, time and attempt.
pub(super) fn temporary_name(attempt: u32) -> CString {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let time = time.unwrap_or_default().as_nanos();
    let process = rustix::process::getpid().as_raw_nonzero();
    let name = format!(".gangplank-{process}-{time:x}-{attempt}.part");
    CString::new(name).unwrap_or_default()
}
