//! A client's open directories.
//!
//! The client opens a directory for each of its kernel's few reads of it, and asks for one entry at a time. So entries are
//! fetched from the daemon many at a time, and few directories are open at once; one that a client has forgotten to close
//! makes way for the next.

use std::collections::VecDeque;
use std::sync::Arc;

use gangplank_driver::{Entry, Session, call};
use gangplank_fuse::{Handle, OpenIn, ReadIn, ReleaseIn};
use rustix::io::Errno;

use super::backend::Backend;
use super::failure::Result;
use super::fd_numbers::random_number;
use super::resolver::{Found, Node};

/// Bytes of entries that the daemon is asked for at a time.
const READDIR_SIZE: u32 = 32 * 1024;

/// Directories that a client has open at once.
const MAX_OPEN: usize = 8;

/// An open directory; closed when dropped.
#[derive(Debug)]
pub(super) struct DirHandle {
    backend: u64,
    session: Session,
    node: Arc<Node>,
    fh: Handle,
    /// The directory's inode number.
    ino: u64,
    fetched: VecDeque<Entry>,
    /// Where the daemon goes on behind what was fetched.
    position: u64,
    ended: bool,
    /// The client wants to go on from where nobody knows any more.
    lost: bool,
}

impl DirHandle {
    /// Opens a directory.
    pub(super) fn open(backend: &Backend, found: &Found) -> Result<Self> {
        let open = backend.session.opendir(found.id(), OpenIn::default())?;
        Ok(Self {
            backend: backend.number,
            session: backend.session.clone(),
            node: Arc::clone(&found.node),
            fh: Handle::new(open.fh),
            ino: found.attr.ino,
            fetched: VecDeque::new(),
            position: 0,
            ended: false,
            lost: false,
        })
    }

    pub(super) const fn ino(&self) -> u64 {
        self.ino
    }

    /// Goes on from `position`. If there is none, reading is an error, as entries would be missing
    /// without anybody's knowing.
    pub(super) fn seek(&mut self, position: Option<u64>) {
        self.fetched.clear();
        self.position = position.unwrap_or_default();
        (self.ended, self.lost) = (false, position.is_none());
    }

    /// Takes back the last entry, which has not reached the client.
    pub(super) fn put_back(&mut self, entry: Entry) {
        self.fetched.push_front(entry);
    }

    /// The next entry; none at the end.
    pub(super) fn next(&mut self, backend: &Backend) -> Result<Option<Entry>> {
        if self.lost || self.backend != backend.number {
            // The daemon has been another meanwhile; the client comes back to where it was by a cookie.
            return Err(Errno::STALE.into());
        }
        if self.fetched.is_empty() && !self.ended {
            let args = ReadIn {
                fh: self.fh.get(),
                offset: self.position,
                size: READDIR_SIZE,
                ..ReadIn::default()
            };
            self.fetched = self.session.readdir(self.node.id(), args)?.into();
            match self.fetched.back() {
                Some(last) => self.position = last.offset,
                None => self.ended = true,
            }
        }
        Ok(self.fetched.pop_front())
    }
}

impl Drop for DirHandle {
    fn drop(&mut self) {
        let args = ReleaseIn {
            fh: self.fh.get(),
            ..ReleaseIn::default()
        };
        // Nobody waits for it, and a daemon that has gone has closed it.
        drop(self.session.submit(call::releasedir(self.node.id(), args)));
    }
}

/// A client's open directories by number, none of which is zero. They begin anywhere, so that none of an earlier client, or of an
/// earlier server's, means anything.
#[derive(Debug)]
pub(super) struct DirHandles {
    open: VecDeque<(u32, DirHandle)>,
    last: u32,
}

impl Default for DirHandles {
    fn default() -> Self {
        Self {
            open: VecDeque::new(),
            last: random_number(),
        }
    }
}

impl DirHandles {
    /// Gives a directory a number. Returns one that had to make way.
    pub(super) fn insert(&mut self, dir_handle: DirHandle) -> (u32, Option<DirHandle>) {
        let oldest = if self.open.len() >= MAX_OPEN {
            self.open.pop_front().map(|(_, dir_handle)| dir_handle)
        } else {
            None
        };
        // Positive, in case that a client looks at it as a number with a sign.
        self.last = self.last % i32::MAX.cast_unsigned() + 1;
        self.open.push_back((self.last, dir_handle));
        (self.last, oldest)
    }

    /// The directory of that number.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn get(&mut self, number: u32) -> Result<&mut DirHandle> {
        let found = self.open.iter_mut().find(|(known, _)| *known == number);
        Ok(found.map(|(_, dir_handle)| dir_handle).ok_or(Errno::BADF)?)
    }

    /// Frees a number: the directory it meant.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn remove(&mut self, number: u32) -> Result<DirHandle> {
        let at = self.open.iter().position(|(known, _)| *known == number);
        let removed = at.and_then(|at| self.open.remove(at));
        Ok(removed
            .map(|(_, dir_handle)| dir_handle)
            .ok_or(Errno::BADF)?)
    }
}
