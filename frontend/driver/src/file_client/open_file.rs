//! Open files of the share.

use std::rc::Rc;

use gangplank_fuse::{FlushIn, FopenFlags, Handle, OpenIn, OpenOut, ReleaseIn};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::path::{LastLink, Node, Share, text};
use super::transfer::FileIo;
use crate as driver;

/// An open file of the share. Dropping it closes the file; only [`OpenFile::close`] reports errors
/// of closing.
pub(super) struct OpenFile<'a> {
    pub(super) share: &'a Share,
    pub(super) node: Rc<Node>,
    pub(super) file: Handle,
    flags: FopenFlags,
    path: String,
    is_open: bool,
}

impl<'a> OpenFile<'a> {
    pub(super) fn new(share: &'a Share, node: Rc<Node>, opened: &OpenOut, path: &str) -> Self {
        Self {
            share,
            node,
            file: Handle::new(opened.fh),
            flags: FopenFlags::from_bits_retain(opened.open_flags),
            path: path.to_owned(),
            is_open: true,
        }
    }

    pub(super) fn io(&self) -> FileIo<'_> {
        FileIo {
            session: &self.share.session,
            node: &self.node,
            file: self.file,
            path: &self.path,
        }
    }

    /// Closes the file. The daemon reports here what it could not write of the data that it has
    /// accepted.
    pub(super) fn close(mut self) -> Result<()> {
        let flushed = self.flush();
        self.is_open = false;
        let closed = flushed.and(self.release());
        closed.map_err(|source| refused("close", &self.path, source))
    }

    /// FLUSH, as a kernel sends it: not if the daemon has set `FOPEN_NOFLUSH`.
    fn flush(&self) -> driver::Result<()> {
        if self.flags.contains(FopenFlags::NOFLUSH) {
            return Ok(());
        }
        let args = FlushIn {
            fh: self.file.get(),
            ..FlushIn::default()
        };
        ignore_enosys(self.share.session.flush(self.node.id, args))
    }

    fn release(&self) -> driver::Result<()> {
        let args = ReleaseIn {
            fh: self.file.get(),
            ..ReleaseIn::default()
        };
        ignore_enosys(self.share.session.release(self.node.id, args))
    }
}

/// A daemon without the operation has no error to report by it.
fn ignore_enosys(answer: driver::Result<()>) -> driver::Result<()> {
    match answer {
        Err(error) if error.errno() == Some(Errno::NOSYS) => Ok(()),
        answer => answer,
    }
}

impl Drop for OpenFile<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // Another error is on its way to the caller already.
            let _ = self.release();
        }
    }
}

impl Share {
    pub(super) fn open_to_read(&self, path: &[u8]) -> Result<OpenFile<'_>> {
        let node = self.find(path, LastLink::Follow)?;
        let shown = text(path);
        let path = shown.as_str();
        self.must_be_regular(&node, path)?;
        let opened = self.open_node(&node, OFlags::RDONLY, path)?;
        Ok(OpenFile::new(self, node, &opened, path))
    }

    pub(super) fn open_node(&self, node: &Node, flags: OFlags, path: &str) -> Result<OpenOut> {
        let args = OpenIn {
            flags: (flags | OFlags::LARGEFILE).bits(),
            open_flags: 0,
        };
        let opened = self.session.open(node.id, args);
        opened.map_err(|source| refused("open", path, source))
    }

    pub(super) fn must_be_regular(&self, node: &Node, path: &str) -> Result<()> {
        let path = path.to_owned();
        match node.kind() {
            FileType::RegularFile => Ok(()),
            FileType::Directory => Err(Error::Directory(path)),
            FileType::Symlink => Err(Error::Link {
                target: text(&self.target(node, &path)?),
                path,
            }),
            _ => Err(Error::Path {
                path,
                why: "it is no regular file",
            }),
        }
    }
}

/// Adds the verb and the file to a refusal.
pub(super) fn refused(what: &'static str, path: &str, source: driver::Error) -> Error {
    Error::Refused {
        what,
        path: path.to_owned(),
        source,
    }
}
