//! Reopening an inode whose descriptor was evicted.
//!
//! The daemon prefers a file handle, if it may open handles and the file system has them. Otherwise
//! it remembers the path inside the share and the birth time; it walks the path one component at a
//! time and accepts the inode if type, number and birth time match. An inode that was renamed in the
//! meantime gives ESTALE. The guest's kernel then repeats the lookup, which finds the inode and
//! returns its old node id.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::errno::stale;
use super::inode_ref::{BirthTime, InodeFingerprint, InodeRef, birth_time};
use super::mounts::{Identity, MountIndex};
use super::options::InodeFileHandles;
use super::share::Share;
use crate::session::Name;
use crate::sys::file::{self, Statx};

/// Limit of components in a remembered path. Inodes at deeper paths keep their descriptors.
const MAX_DEPTH: usize = 64;

/// The longest path that the kernel returns, in bytes (`PATH_MAX`, `linux/limits.h`).
const PATH_MAX: usize = 4096;

/// What the kernel appends to the path of a descriptor whose name was removed (`d_path`,
/// `fs/d_path.c`).
const DELETED: &[u8] = b" (deleted)";

/// Why an inode cannot be reopened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotReopenable {
    /// An operation failed that may succeed later.
    Temporarily,
    /// The file system or the path does not allow it.
    Permanently,
}

impl Share {
    /// The fingerprint of the inode that `file` refers to.
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

    /// The fingerprint of the inode at `name` in `dir`, whose attributes are `stat`.
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

    /// Creates a reference by which the inode of `file` can be reopened.
    ///
    /// # Errors
    /// Whether a later attempt may succeed.
    pub(super) fn inode_ref(
        &self,
        identity: Identity,
        file: BorrowedFd<'_>,
    ) -> Result<InodeRef, NotReopenable> {
        match self.openable_handle(identity, file) {
            Ok(Some(handle)) => return Ok(InodeRef::Handle(handle)),
            Ok(None) => {}
            Err(_) => return Err(NotReopenable::Temporarily),
        }
        if self.options.inode_file_handles != InodeFileHandles::Prefer {
            return Err(NotReopenable::Temporarily);
        }
        let stat = file::identity(file).map_err(|_| NotReopenable::Temporarily)?;
        let birth_time = birth_time(&stat).ok_or(NotReopenable::Permanently)?;
        let path = self.path_in_share(file).map_err(|error| {
            if error.raw_os_error() == Some(libc::ENAMETOOLONG) {
                NotReopenable::Permanently
            } else {
                NotReopenable::Temporarily
            }
        })?;
        let path = path.ok_or(NotReopenable::Permanently)?;
        // `/proc/self/fd` appends remarks like " (deleted)", and file names may look like one. So
        // the path is walked once to verify it. The walk may fail because names change at this
        // moment or because no descriptor is left.
        self.walk(&path, identity, birth_time).map_err(|_| {
            // The name by which the descriptor was opened is gone, though the inode has another.
            // The kernel never gives the descriptor a new name.
            if path.ends_with(DELETED) {
                NotReopenable::Permanently
            } else {
                NotReopenable::Temporarily
            }
        })?;
        Ok(InodeRef::Path { path, birth_time })
    }

    /// Opens a referenced inode (`O_PATH`), and checks that it is that inode, above all its type: the
    /// caller opens the file behind the descriptor.
    ///
    /// # Errors
    /// ESTALE if the inode is not found.
    pub(super) fn open_inode_ref(
        &self,
        identity: Identity,
        inode_ref: &InodeRef,
    ) -> io::Result<OwnedFd> {
        match inode_ref {
            InodeRef::Handle(handle) => {
                let file = handle.open()?;
                let stat = file::identity(file.as_fd())?;
                if !self.is_identity_of(identity, &stat) {
                    return Err(stale());
                }
                Ok(file)
            }
            InodeRef::Path { path, birth_time } => self.walk(path, identity, *birth_time),
            InodeRef::Unlinked => Err(stale()),
        }
    }

    /// The current path of `file` inside the share; `None` if it has no name there.
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

    /// The path of an open file according to `/proc/self/fd`.
    fn proc_path<'a>(&self, file: BorrowedFd<'_>, path: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let length = file::proc_path(self.proc_self_fd(), file, path)?;
        // A path that fills the buffer may be truncated.
        path.get(..length)
            .filter(|_| length < PATH_MAX)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENAMETOOLONG))
    }

    /// Walks a path one component at a time and verifies that it leads to the inode.
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
        let stat = file::identity(reached.as_fd())?;
        if self.is_identity_of(identity, &stat) && birth_time(&stat) == Some(expected_birth) {
            return Ok(reached);
        }
        Err(stale())
    }

    fn is_identity_of(&self, identity: Identity, stat: &Statx) -> bool {
        self.mounts
            .find(stat, identity.mount)
            .is_some_and(|mount| Identity::new(mount, stat) == identity)
    }
}

/// A missing component means that the inode has moved; the guest must not see ENOENT for that.
fn missing_is_stale(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => stale(),
        _ => error,
    }
}
