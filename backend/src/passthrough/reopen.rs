//! Finding an inode again that no descriptor holds.
//!
//! A file handle does that best, for whoever may open handles, on file systems that have them. Else the daemon
//! remembers where in the share the inode was and when it was born: it walks there, and what it finds is the inode if it
//! has the same number and was born at the same time. An inode that was moved meanwhile is stale; the guest's kernel then
//! walks by itself, its look-up comes upon the inode, and it has the node id that it had.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::inode_table::stale;
use super::mount_handles::OpenableHandle;
use super::mounts::{Identity, MountIndex};
use super::options::InodeFileHandles;
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
pub(super) enum InodeRef {
    /// By the name that the file system has for it.
    Handle(OpenableHandle),
    /// By the place where it was.
    Path {
        /// From the share's root, without a `/` at either end.
        path: Box<[u8]>,
        /// When it was born.
        birth_time: BirthTime,
    },
    /// Not at all: it had no name any more when its descriptor was needed for something else.
    Unlinked,
}

/// Seconds since the epoch, and nanoseconds.
type BirthTime = (i64, u32);

/// What tells whether an inode of the same number is the same inode.
#[derive(Debug, Clone)]
pub(super) struct InodeFingerprint {
    handle: Option<FileHandle>,
    birth_time: Option<BirthTime>,
}

impl InodeRef {
    /// Whether the inode is the one that the fingerprint is of.
    pub(super) fn matches(&self, fingerprint: &InodeFingerprint) -> bool {
        match self {
            Self::Handle(handle) => fingerprint.handle.as_ref() == Some(handle.handle()),
            Self::Path { birth_time, .. } => fingerprint.birth_time == Some(*birth_time),
            Self::Unlinked => false,
        }
    }

    /// Whether it stays right whatever happens to the inode's names.
    pub(super) fn survives_rename(&self) -> bool {
        matches!(self, Self::Handle(_))
    }
}

/// Why there is no way to find an inode again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotReopenable {
    /// Something failed that may not fail later.
    Temporarily,
    /// For what and where it is.
    Permanently,
}

impl Share {
    /// What tells the inode of `file` from others that had its number.
    pub(super) fn fingerprint(
        &self,
        mount: MountIndex,
        file: BorrowedFd<'_>,
        stat: &Statx,
    ) -> InodeFingerprint {
        let mount = self
            .uses_file_handles()
            .then(|| self.mount(mount).ok())
            .flatten();
        InodeFingerprint {
            handle: mount.and_then(|mount| mount.handles().handle_of(file)),
            birth_time: birth_time(stat),
        }
    }

    /// What tells the inode that `name` leads to, whose attributes are `stat`, from others that had its number.
    pub(super) fn fingerprint_at(
        &self,
        mount: MountIndex,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &Statx,
    ) -> InodeFingerprint {
        let mount = self
            .uses_file_handles()
            .then(|| self.mount(mount).ok())
            .flatten();
        InodeFingerprint {
            handle: mount.and_then(|mount| mount.handles().handle_at(dir, name)),
            birth_time: birth_time(stat),
        }
    }

    /// How to find the inode of `file` again.
    ///
    /// # Errors
    /// Whether there may be a way at another time.
    pub(super) fn inode_ref(
        &self,
        identity: Identity,
        file: BorrowedFd<'_>,
        can_be_opened: bool,
    ) -> Result<InodeRef, NotReopenable> {
        if let Some(handle) = self.openable_handle(identity, file, can_be_opened) {
            return Ok(InodeRef::Handle(handle));
        }
        if self.options.inode_file_handles != InodeFileHandles::Prefer {
            return Err(NotReopenable::Temporarily);
        }
        let stat = file::stat(file).map_err(|_| NotReopenable::Temporarily)?;
        let birth_time = birth_time(&stat).ok_or(NotReopenable::Permanently)?;
        let path = self.path_in_share(file).map_err(|error| {
            if error.raw_os_error() == Some(libc::ENAMETOOLONG) {
                NotReopenable::Permanently
            } else {
                NotReopenable::Temporarily
            }
        })?;
        let path = path.ok_or(NotReopenable::Permanently)?;
        // The kernel's word for where it is may be misleading: names can look like its remarks. So it is tried. When
        // that fails, names may be changing just now, or no descriptor be left for it.
        self.walk(&path, identity, birth_time)
            .map_err(|_| NotReopenable::Temporarily)?;
        Ok(InodeRef::Path { path, birth_time })
    }

    fn uses_file_handles(&self) -> bool {
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
        let mount = self
            .uses_file_handles()
            .then(|| self.mount(identity.mount).ok())
            .flatten()?;
        // The descriptor may live long, and an inode with it: the root's does no harm.
        let source = match identity.mount {
            MountIndex::ROOT => Some(self.root.as_fd()),
            _ => can_be_opened.then_some(file),
        };
        mount
            .handles()
            .openable_handle(self.proc_self_fd(), file, source)
    }

    /// Opens an inode that no descriptor holds (`O_PATH`).
    ///
    /// # Errors
    /// ESTALE where it cannot be found.
    pub(super) fn open_inode_ref(
        &self,
        identity: Identity,
        inode_ref: &InodeRef,
    ) -> io::Result<OwnedFd> {
        match inode_ref {
            InodeRef::Handle(handle) => handle.open(),
            InodeRef::Path { path, birth_time } => self.walk(path, identity, *birth_time),
            InodeRef::Unlinked => Err(stale()),
        }
    }

    /// Where in the share `file` is at present; `None` where it has no name there.
    fn path_in_share(&self, file: BorrowedFd<'_>) -> io::Result<Option<Box<[u8]>>> {
        let (mut root, mut path) = ([0; PATH_MAX], [0; PATH_MAX]);
        let root = self.proc_path(self.root.as_fd(), &mut root)?;
        let path = self.proc_path(file, &mut path)?;
        let root = root.strip_suffix(b"/").unwrap_or(root);
        let inside = path
            .strip_prefix(root)
            .and_then(|rest| rest.strip_prefix(b"/"))
            .filter(|inside| !inside.is_empty());
        let shallow = |inside: &&[u8]| inside.split(|byte| *byte == b'/').count() <= MAX_DEPTH;
        Ok(inside.filter(shallow).map(Box::from))
    }

    /// What the kernel says is the path of an open file.
    fn proc_path<'a>(&self, file: BorrowedFd<'_>, path: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let length = file::proc_path(self.proc_self_fd(), file, path)?;
        // A path that fills the buffer may have been cut.
        path.get(..length)
            .filter(|_| length < PATH_MAX)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))
    }

    /// Walks to where an inode was, component by component, and makes sure that it is the one.
    fn walk(
        &self,
        path: &[u8],
        identity: Identity,
        expected_birth: BirthTime,
    ) -> io::Result<OwnedFd> {
        let mut reached: Option<OwnedFd> = None;
        for component in path.split(|byte| *byte == b'/') {
            let name = CString::new(component).map_err(|_| stale())?;
            let name = Name::new(&name)?;
            let from = reached.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            reached = Some(file::open_path(from, name.as_c_str()).map_err(missing_is_stale)?);
        }
        let reached = reached.ok_or_else(stale)?;
        let stat = file::stat(reached.as_fd())?;
        let mount = self.mounts.find(&stat, identity.mount);
        if mount == Some(identity.mount)
            && stat.stx_ino == identity.ino
            && birth_time(&stat) == Some(expected_birth)
        {
            return Ok(reached);
        }
        Err(stale())
    }
}

fn birth_time(stat: &Statx) -> Option<BirthTime> {
    let known = stat.stx_mask & libc::STATX_BTIME != 0;
    known.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

/// A missing component says that the inode has moved, not that a name of the guest's is missing.
fn missing_is_stale(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => stale(),
        _ => error,
    }
}
