//! A client's open directories.
//!
//! The client opens a directory for every few reads of its kernel and requests one entry at a time.
//! So the server fetches many entries at once and keeps few directories open. A directory that a
//! client has not closed is closed for a newer one.

use std::collections::VecDeque;
use std::sync::Arc;

use gangplank_driver::{DirEntry, FuseSession, call};
use gangplank_fuse::{Handle, OpenIn, ReadIn, ReleaseIn};
use rustix::io::Errno;

use super::backend::Backend;
use super::failure::Result;
use super::fd_numbers::random_number;
use super::resolver::{Found, Node};

/// Bytes of entries in one request to the daemon.
const READDIR_SIZE: u32 = 32 * 1024;

/// Open directories of one client.
const MAX_OPEN: usize = 8;

/// An open directory. Dropping it closes it.
#[derive(Debug)]
pub(super) struct DirHandle {
    backend: u64,
    session: FuseSession,
    node: Arc<Node>,
    fh: Handle,
    /// The directory's inode number.
    ino: u64,
    fetched: VecDeque<DirEntry>,
    /// The daemon's position behind the fetched entries.
    position: u64,
    ended: bool,
    /// The client wants to continue from an unknown position.
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

    /// Continues from `position`. Without one the next read fails, since entries would be missing
    /// without notice.
    pub(super) fn seek(&mut self, position: Option<u64>) {
        self.fetched.clear();
        self.position = position.unwrap_or_default();
        (self.ended, self.lost) = (false, position.is_none());
    }

    /// Takes the last entry back, which was not delivered to the client.
    pub(super) fn return_entry(&mut self, entry: DirEntry) {
        self.fetched.push_front(entry);
    }

    /// The next entry. `None` at the end.
    pub(super) fn next(&mut self, backend: &Backend) -> Result<Option<DirEntry>> {
        if self.lost || self.backend != backend.number {
            // The daemon was connected anew. The client opens the directory again and continues
            // from a cookie.
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
        // Nobody waits for the answer, and a daemon that is gone has closed the directory.
        drop(self.session.submit(call::releasedir(self.node.id(), args)));
    }
}

/// A client's open directories by number. Numbers start at random and are never zero, so that
/// numbers of an earlier client or server are invalid.
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
    /// Gives a directory a number. Returns the directory that was closed for it, if any.
    pub(super) fn insert(&mut self, dir_handle: DirHandle) -> (u32, Option<DirHandle>) {
        let oldest = if self.open.len() >= MAX_OPEN {
            self.open.pop_front().map(|(_, dir_handle)| dir_handle)
        } else {
            None
        };
        // Positive, in case the client reads it as a signed number.
        self.last = self.last % i32::MAX.cast_unsigned() + 1;
        self.open.push_back((self.last, dir_handle));
        (self.last, oldest)
    }

    /// The directory with this number.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub(super) fn get(&mut self, number: u32) -> Result<&mut DirHandle> {
        let found = self.open.iter_mut().find(|(known, _)| *known == number);
        Ok(found.map(|(_, dir_handle)| dir_handle).ok_or(Errno::BADF)?)
    }

    /// Removes and returns the directory with this number.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub(super) fn remove(&mut self, number: u32) -> Result<DirHandle> {
        let at = self.open.iter().position(|(known, _)| *known == number);
        let removed = at.and_then(|at| self.open.remove(at));
        Ok(removed
            .map(|(_, dir_handle)| dir_handle)
            .ok_or(Errno::BADF)?)
    }
}
