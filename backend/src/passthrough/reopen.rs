//! Reopening an inode whose descriptor was evicted.
//!
//! The daemon prefers a file handle, if it may open handles and the file system has them. Otherwise
//! it remembers the inode's name and directory (`remembered_names`), and finds it by those: it goes
//! up to the nearest directory that is open for the guest, or to the share's root, and from there
//! down one component at a time. Each directory on the way, and the inode itself, must have the
//! remembered type, number and birth time. So a directory that was renamed still leads to what is
//! in it, as long as it is open. If it is not, or if the inode itself was renamed, the guest gets
//! ESTALE. The guest's kernel then repeats the lookup, which finds the inode and returns its old
//! node id.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::budget::Descriptor;
use super::errno::stale;
use super::fs::PassthroughFs;
use super::inode_ref::{BirthTime, InodeFingerprint, InodeRef, birth_time};
use super::mounts::{Identity, MountIndex};
use super::options::InodeFileHandles;
use super::remembered_names::{MAX_DEPTH, RememberedDir, RememberedName};
use super::share::Share;
use crate::session::Name;
use crate::sys::file::{self, Statx};

/// The longest path that the kernel returns, in bytes (`PATH_MAX`, `linux/limits.h`).
const PATH_MAX: usize = 4096;

/// What the kernel appends to the path of a descriptor whose name was removed (`d_path`,
/// `fs/d_path.c`).
pub(super) const DELETED: &[u8] = b" (deleted)";

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
    ///
    /// # Errors
    /// The file handle cannot be read.
    pub(super) fn fingerprint(
        &self,
        mount: MountIndex,
        file: BorrowedFd<'_>,
        stat: &Statx,
    ) -> io::Result<InodeFingerprint> {
        let handle = match self.uses_file_handles() {
            true => self.mount(mount)?.handles().handle_of(file)?,
            false => None,
        };
        let birth_time = birth_time(stat);
        Ok(InodeFingerprint { handle, birth_time })
    }

    /// The fingerprint of the inode at `name` in `dir`, whose attributes are `stat`.
    ///
    /// # Errors
    /// The file handle cannot be read; ENOENT if the name is gone.
    pub(super) fn fingerprint_at(
        &self,
        mount: MountIndex,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &Statx,
    ) -> io::Result<InodeFingerprint> {
        let handle = match self.uses_file_handles() {
            true => self.mount(mount)?.handles().handle_at(dir, name)?,
            false => None,
        };
        let birth_time = birth_time(stat);
        Ok(InodeFingerprint { handle, birth_time })
    }

    /// Whether these are the attributes of the inode.
    pub(super) fn is_identity_of(&self, identity: Identity, stat: &Statx) -> bool {
        self.mounts
            .find(stat, identity.mount)
            .is_some_and(|mount| Identity::new(mount, stat) == identity)
    }

    /// The current path of `file` inside the share; `None` if it has no name there, or too deep a
    /// path.
    pub(super) fn path_in_share(&self, file: BorrowedFd<'_>) -> io::Result<Option<Box<[u8]>>> {
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
}

impl PassthroughFs {
    /// Creates a reference by which the inode of `file` can be reopened.
    ///
    /// # Errors
    /// Whether a later attempt may succeed.
    pub(super) fn inode_ref(
        &self,
        identity: Identity,
        file: BorrowedFd<'_>,
    ) -> Result<InodeRef, NotReopenable> {
        match self.share.openable_handle(identity, file) {
            Ok(Some(handle)) => return Ok(InodeRef::Handle(handle)),
            Ok(None) => {}
            Err(_) => return Err(NotReopenable::Temporarily),
        }
        if self.share.options.inode_file_handles != InodeFileHandles::Prefer {
            return Err(NotReopenable::Temporarily);
        }
        let stat = file::identity(file).map_err(|_| NotReopenable::Temporarily)?;
        let birth_time = birth_time(&stat).ok_or(NotReopenable::Permanently)?;
        let path = self.share.path_in_share(file).map_err(|error| {
            if error.raw_os_error() == Some(libc::ENAMETOOLONG) {
                NotReopenable::Permanently
            } else {
                NotReopenable::Temporarily
            }
        })?;
        let path = path.ok_or(NotReopenable::Permanently)?;
        match self.remember_name(&path, identity, birth_time) {
            Ok(name) => Ok(InodeRef::Name { name, birth_time }),
            // The name by which the descriptor was opened is gone, though the inode has another.
            // The kernel never gives the descriptor a new name.
            Err(_) if path.ends_with(DELETED) => Err(NotReopenable::Permanently),
            // Names change at this moment, or no descriptor or memory is left.
            Err(_) => Err(NotReopenable::Temporarily),
        }
    }

    /// Opens a referenced inode (`O_PATH`), and checks that it is that inode, above all its type:
    /// the caller opens the file behind the descriptor.
    ///
    /// # Errors
    /// ESTALE if the inode is not found.
    pub(super) fn open_inode_ref(
        &self,
        identity: Identity,
        inode_ref: &InodeRef,
    ) -> io::Result<OwnedFd> {
        self.open_inode_ref_within(identity, inode_ref, MAX_DEPTH)
    }

    /// [`Self::open_inode_ref`] by way of at most this number of directories that the guest knows
    /// and that have no descriptors either.
    fn open_inode_ref_within(
        &self,
        identity: Identity,
        inode_ref: &InodeRef,
        levels: usize,
    ) -> io::Result<OwnedFd> {
        let (file, birth_time) = match inode_ref {
            InodeRef::Handle(handle) => (handle.open()?, None),
            InodeRef::Name { name, birth_time } => {
                (self.open_name(name, levels)?, Some(*birth_time))
            }
            InodeRef::Unlinked => return Err(stale()),
        };
        self.check(identity, birth_time, &file::identity(file.as_fd())?)?;
        Ok(file)
    }

    /// Opens what has a remembered name now.
    fn open_name(&self, name: &RememberedName, levels: usize) -> io::Result<OwnedFd> {
        let mut way_down = Vec::new();
        let mut open = None;
        for dir in name.dir.iter().flat_map(RememberedDir::and_above) {
            open = self.known_directory(dir.identity(), levels)?;
            if open.is_some() {
                break;
            }
            way_down.push(dir);
        }
        let start = open.unwrap_or_else(|| Arc::clone(&self.share.root));
        let mut reached: Option<OwnedFd> = None;
        for dir in way_down.into_iter().rev() {
            let from = reached.as_ref().map_or(start.as_fd(), AsFd::as_fd);
            let found = open_component(from, &dir.name())?;
            self.check(
                dir.identity(),
                dir.birth_time(),
                &file::identity(found.as_fd())?,
            )?;
            reached = Some(found);
        }
        let from = reached.as_ref().map_or(start.as_fd(), AsFd::as_fd);
        open_component(from, &name.name)
    }

    /// A directory that the guest knows; `None` if it does not. Without a descriptor, it is
    /// reopened by its own reference, which a rename by the guest has changed.
    fn known_directory(
        &self,
        identity: Identity,
        levels: usize,
    ) -> io::Result<Option<Arc<Descriptor>>> {
        let inodes = &self.state.inodes;
        if let Some(open) = inodes.descriptor_of(identity) {
            return Ok(Some(open));
        }
        let Some((id, inode_ref)) = inodes.find_noted(identity) else {
            return Ok(None);
        };
        // References can lead around in a circle, if the host has moved directories.
        let levels = levels.checked_sub(1).ok_or_else(stale)?;
        let permit = self.acquire_inode_permit()?;
        let opened = self.open_inode_ref_within(identity, &inode_ref, levels)?;
        let descriptor = Arc::new(Descriptor::new(opened, permit));
        inodes.set_descriptor(id, descriptor).map(Some)
    }

    /// Checks the attributes of what was found; the birth time only if one is given.
    fn check(
        &self,
        identity: Identity,
        expected_birth: Option<BirthTime>,
        stat: &Statx,
    ) -> io::Result<()> {
        let same = self.share.is_identity_of(identity, stat)
            && expected_birth.is_none_or(|expected| birth_time(stat) == Some(expected));
        same.then_some(()).ok_or_else(stale)
    }

    /// Remembers an inode by its path in the share, after checking that the path leads to it:
    /// `/proc/self/fd` appends remarks like " (deleted)", and file names may look like one.
    fn remember_name(
        &self,
        path: &[u8],
        identity: Identity,
        birth_time: BirthTime,
    ) -> io::Result<RememberedName> {
        let mut parts = path.rsplitn(2, |byte| *byte == b'/');
        let name = component(parts.next().unwrap_or_default())?;
        let found = parts.next().map(|dir| self.remember_dir(dir)).transpose()?;
        let (dir, opened) = found.unzip();
        let opened = opened.as_ref().map_or(self.share.root.as_fd(), AsFd::as_fd);
        self.check(
            identity,
            Some(birth_time),
            &file::identity_at(opened, &name)?,
        )?;
        Ok(RememberedName { dir, name })
    }

    /// Remembers the directory at `path`, and those on the way, and opens it.
    fn remember_dir(&self, path: &[u8]) -> io::Result<(RememberedDir, OwnedFd)> {
        let dirs = self.state.inodes.remembered_dirs();
        // Usually many inodes of a directory are evicted, so it is remembered. Without openat2(2)
        // it is opened step by step each time.
        if let Ok(opened) = file::open_dir_beneath(self.share.root.as_fd(), path) {
            let (identity, birth_time) = self.identify(opened.as_fd())?;
            if let Some(known) = dirs.find(identity)
                && known.birth_time() == birth_time
                && known.has_path(path)
            {
                return Ok((known, opened));
            }
        }
        let mut reached: Option<(RememberedDir, OwnedFd)> = None;
        for name in path.split(|byte| *byte == b'/') {
            let name = component(name)?;
            let (dir, opened) = reached.unzip();
            let from = opened.as_ref().map_or(self.share.root.as_fd(), AsFd::as_fd);
            let opened = open_component(from, &name)?;
            let (identity, birth_time) = self.identify(opened.as_fd())?;
            let dir = dirs.remember(RememberedName { dir, name }, identity, birth_time)?;
            reached = Some((dir, opened));
        }
        reached.ok_or_else(stale)
    }

    fn identify(&self, dir: BorrowedFd<'_>) -> io::Result<(Identity, Option<BirthTime>)> {
        let stat = file::identity(dir)?;
        let mount = self.share.mounts.find_or_add(&stat, dir)?;
        Ok((Identity::new(mount.index(), &stat), birth_time(&stat)))
    }
}

pub(super) fn component(name: &[u8]) -> io::Result<Box<CStr>> {
    let name = CString::new(name).map_err(|_| stale())?;
    Name::new(&name)?;
    Ok(name.into_boxed_c_str())
}

/// Opens a name (`O_PATH`). A missing name means that the inode has moved; the guest must not see
/// ENOENT for that.
pub(super) fn open_component(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    file::open_path(dir, name).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => stale(),
        _ => error,
    })
}
