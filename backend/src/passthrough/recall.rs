//! Finding an inode again that no descriptor holds.
//!
//! A file handle does that best, for whoever may open handles, on file systems that have them. Else the daemon
//! remembers where in the share the inode was and when it was born: it walks there, and what it finds is the inode if it
//! has the same number and was born at the same time. An inode that was moved meanwhile is stale; the guest's kernel then
//! walks by itself, its look-up comes upon the inode, and it has the node id that it had.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::inodes::stale;
use super::mount_handles::OpenableHandle;
use super::options::InodeFileHandles;
use super::places::{Identity, PlaceIndex};
use super::share::Share;
use crate::session::Name;
use crate::sys::file::{self, Statx};
use crate::sys::file_handle::FileHandle;

/// Most components of a path that is remembered; longer ones keep their descriptors.
const MAX_DEPTH: usize = 64;

/// The longest path that the kernel tells (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// How to find an inode again, and to know it when it is found.
#[derive(Debug, Clone)]
pub(super) enum Recall {
    /// By the name that the file system has for it.
    Handle(OpenableHandle),
    /// By the place where it was.
    Path {
        /// From the share's root, without a `/` at either end.
        path: Box<[u8]>,
        /// When it was born.
        born: Birth,
    },
    /// Not at all: it had no name any more when its descriptor was needed for something else.
    Gone,
}

/// Seconds since the epoch, and nanoseconds.
type Birth = (i64, u32);

/// What tells whether an inode of the same number is the same inode.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    handle: Option<FileHandle>,
    born: Option<Birth>,
}

impl Recall {
    /// Whether the inode is the one that the evidence is of.
    pub(super) fn is_of(&self, evidence: &Evidence) -> bool {
        match self {
            Self::Handle(handle) => evidence.handle.as_ref() == Some(handle.handle()),
            Self::Path { born, .. } => evidence.born == Some(*born),
            Self::Gone => false,
        }
    }

    /// Whether it stays right whatever happens to the inode's names.
    pub(super) fn lasts(&self) -> bool {
        matches!(self, Self::Handle(_))
    }
}

/// Why there is no way to find an inode again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRecall {
    /// Something failed that may not fail later.
    Now,
    /// For what and where it is.
    Ever,
}

impl Share {
    /// What tells the inode of `file` from others that had its number.
    pub(super) fn evidence(
        &self,
        place: PlaceIndex,
        file: BorrowedFd<'_>,
        stat: &Statx,
    ) -> Evidence {
        let place = self
            .uses_handles()
            .then(|| self.place(place).ok())
            .flatten();
        Evidence {
            handle: place.and_then(|place| place.handles().known(file)),
            born: born(stat),
        }
    }

    /// What tells the inode that `name` leads to, whose attributes are `stat`, from others that had its number.
    pub(super) fn evidence_at(
        &self,
        place: PlaceIndex,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &Statx,
    ) -> Evidence {
        let place = self
            .uses_handles()
            .then(|| self.place(place).ok())
            .flatten();
        Evidence {
            handle: place.and_then(|place| place.handles().known_at(dir, name)),
            born: born(stat),
        }
    }

    /// How to find the inode of `file` again.
    ///
    /// # Errors
    /// Whether there may be a way at another time.
    pub(super) fn recall(
        &self,
        identity: Identity,
        file: BorrowedFd<'_>,
        can_be_opened: bool,
    ) -> Result<Recall, NoRecall> {
        if let Some(handle) = self.openable_handle(identity, file, can_be_opened) {
            return Ok(Recall::Handle(handle));
        }
        if self.options.inode_file_handles != InodeFileHandles::Prefer {
            return Err(NoRecall::Now);
        }
        let stat = file::stat(file).map_err(|_| NoRecall::Now)?;
        let born = born(&stat).ok_or(NoRecall::Ever)?;
        let path = self.path_in_share(file).map_err(|error| {
            if error.raw_os_error() == Some(libc::ENAMETOOLONG) {
                NoRecall::Ever
            } else {
                NoRecall::Now
            }
        })?;
        let path = path.ok_or(NoRecall::Ever)?;
        // The kernel's word for where it is may be misleading: names can look like its remarks. So it is tried. When
        // that fails, names may be changing just now, or no descriptor be left for it.
        self.walk(&path, identity, born)
            .map_err(|_| NoRecall::Now)?;
        Ok(Recall::Path { path, born })
    }

    fn uses_handles(&self) -> bool {
        self.abilities.can_open_by_handle
            && self.options.inode_file_handles != InodeFileHandles::Never
    }

    /// A handle of `file`, where handles may be used and are to be had.
    pub(super) fn openable_handle(
        &self,
        identity: Identity,
        file: BorrowedFd<'_>,
        can_be_opened: bool,
    ) -> Option<OpenableHandle> {
        let place = self
            .uses_handles()
            .then(|| self.place(identity.place).ok())
            .flatten()?;
        // The descriptor may live long, and an inode with it: the root's does no harm.
        let source = match identity.place {
            PlaceIndex::ROOT => Some(self.root.as_fd()),
            _ => can_be_opened.then_some(file),
        };
        place.handles().openable(self.proc_self_fd(), file, source)
    }

    /// Opens an inode that no descriptor holds (`O_PATH`).
    ///
    /// # Errors
    /// ESTALE where it cannot be found.
    pub(super) fn open_recalled(&self, identity: Identity, recall: &Recall) -> io::Result<OwnedFd> {
        match recall {
            Recall::Handle(handle) => handle.open(),
            Recall::Path { path, born } => self.walk(path, identity, *born),
            Recall::Gone => Err(stale()),
        }
    }

    /// Where in the share `file` is at present; `None` where it has no name there.
    fn path_in_share(&self, file: BorrowedFd<'_>) -> io::Result<Option<Box<[u8]>>> {
        let (mut root, mut path) = ([0; PATH_MAX], [0; PATH_MAX]);
        let root = self.own_path(self.root.as_fd(), &mut root)?;
        let path = self.own_path(file, &mut path)?;
        let root = root.strip_suffix(b"/").unwrap_or(root);
        let inside = path
            .strip_prefix(root)
            .and_then(|rest| rest.strip_prefix(b"/"))
            .filter(|inside| !inside.is_empty());
        let shallow = |inside: &&[u8]| inside.split(|byte| *byte == b'/').count() <= MAX_DEPTH;
        Ok(inside.filter(shallow).map(Box::from))
    }

    /// What the kernel says is the path of an open file.
    fn own_path<'a>(&self, file: BorrowedFd<'_>, path: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let length = file::own_path(self.proc_self_fd(), file, path)?;
        // A path that fills the buffer may have been cut.
        path.get(..length)
            .filter(|_| length < PATH_MAX)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))
    }

    /// Walks to where an inode was, component by component, and makes sure that it is the one.
    fn walk(&self, path: &[u8], identity: Identity, born_then: Birth) -> io::Result<OwnedFd> {
        let mut reached: Option<OwnedFd> = None;
        for component in path.split(|byte| *byte == b'/') {
            let name = CString::new(component).map_err(|_| stale())?;
            let name = Name::new(&name)?;
            let from = reached.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            reached = Some(file::open_path(from, name.as_c_str()).map_err(not_there)?);
        }
        let reached = reached.ok_or_else(stale)?;
        let stat = file::stat(reached.as_fd())?;
        let place = self.places.find(&stat, identity.place);
        if place == Some(identity.place)
            && stat.stx_ino == identity.ino
            && born(&stat) == Some(born_then)
        {
            return Ok(reached);
        }
        Err(stale())
    }
}

fn born(stat: &Statx) -> Option<Birth> {
    let known = stat.stx_mask & libc::STATX_BTIME != 0;
    known.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

/// A missing component says that the inode has moved, not that a name of the guest's is missing.
fn not_there(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => stale(),
        _ => error,
    }
}
