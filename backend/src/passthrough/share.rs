//! The directory that a guest sees: its root, options, mounts and descriptor budget.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use gangplank_service::rate_limited;

use super::budget::{Budget, Descriptor, Permit};
use super::cache_timeouts::CacheTimeouts;
use super::errno::stale;
use super::file_type::FileType;
use super::mount_handles::OpenableHandle;
use super::mounts::{Identity, Mount, MountIndex, Mounts};
use super::options::{InodeFileHandles, Options};
use super::xattr_names::mapped_capability;
use crate::state::arena::Arena;
use crate::sys::file::{self, Statx};

/// What the process may do. Determined when the process is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Threads may change their user and group ids (`CAP_SETUID`, `CAP_SETGID`).
    pub can_change_credentials: bool,
    /// Files may be opened by handle (`CAP_DAC_READ_SEARCH`).
    pub can_open_by_handle: bool,
}

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// `statx(2)` on the directory failed.
    #[error("cannot read the attributes of the shared directory")]
    Attributes(#[source] io::Error),
    /// The guest's earlier workers shared a directory of another mount.
    #[error(
        "the guest's state is that of a directory of another mount; end the guest's session and \
         start a new one"
    )]
    OtherMount,
    /// The path is not a directory.
    #[error("the shared path is not a directory")]
    NotDirectory,
    /// `--inode-file-handles=mandatory` was given and file handles do not work.
    #[error(
        "--inode-file-handles=mandatory: cannot open files by handle: either CAP_DAC_READ_SEARCH \
         is missing or the file system has no handles; use --inode-file-handles=prefer or =never"
    )]
    NoHandles,
}

/// The shared directory as one guest's process sees it. Each worker creates one, after it is
/// confined.
#[derive(Debug)]
pub struct Share {
    /// The memory of the guest's state.
    pub(super) arena: Arc<Arena>,
    pub(super) root: Arc<Descriptor>,
    pub(super) root_identity: Identity,
    pub(super) proc_self_fd: OwnedFd,
    pub(super) options: Options,
    pub(super) abilities: Abilities,
    pub(super) timeouts: CacheTimeouts,
    /// The host's name of the attribute of file capabilities, if the kernel does not know it.
    pub(super) mapped_capability: Option<CString>,
    pub(super) mounts: Arc<Mounts>,
    pub(super) budget: Arc<Budget>,
}

impl Share {
    /// Shares the directory `root` with the guest whose state is in `arena`. `proc_self_fd` is an
    /// open `/proc/self/fd`; the process reopens its own descriptors through it, also inside a
    /// chroot.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn new(
        root: OwnedFd,
        proc_self_fd: OwnedFd,
        options: Options,
        abilities: Abilities,
        arena: Arc<Arena>,
    ) -> Result<Arc<Self>, ShareError> {
        let stat = file::stat(root.as_fd()).map_err(ShareError::Attributes)?;
        if FileType::of(&stat) != FileType::Directory {
            return Err(ShareError::NotDirectory);
        }
        let mounts = Arc::new(Mounts::restore(&arena));
        let mount = mounts
            .find_or_add_root(&stat, root.as_fd())
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ESTALE) => ShareError::OtherMount,
                _ => ShareError::Attributes(error),
            })?;
        if options.inode_file_handles == InodeFileHandles::Mandatory {
            let handle = mount.handles().openable_handle(
                proc_self_fd.as_fd(),
                root.as_fd(),
                Some(root.as_fd()),
            );
            if !abilities.can_open_by_handle || !matches!(handle, Ok(Some(_))) {
                return Err(ShareError::NoHandles);
            }
        }
        // The root's descriptor does not count against the guest's budget.
        let permit = Permit::uncounted();
        Ok(Arc::new(Self {
            arena,
            root: Arc::new(Descriptor::new(root, permit)),
            root_identity: Identity::new(mount.index(), &stat),
            proc_self_fd,
            budget: Budget::new(options.fd_budget),
            timeouts: CacheTimeouts::new(&options),
            mapped_capability: mapped_capability(options.xattr_map.as_ref()),
            options,
            abilities,
            mounts,
        }))
    }

    /// The options of the share.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Number of descriptors that the guest holds now.
    #[must_use]
    pub fn held_descriptors(&self) -> u64 {
        self.budget.held()
    }

    pub(super) fn proc_self_fd(&self) -> BorrowedFd<'_> {
        self.proc_self_fd.as_fd()
    }

    /// A file handle of `file`, if handles are enabled and the file system has them.
    ///
    /// # Errors
    /// Those of [`MountHandles::openable_handle`](super::mount_handles::MountHandles).
    pub(super) fn openable_handle(
        &self,
        identity: Identity,
        file: BorrowedFd<'_>,
    ) -> io::Result<Option<OpenableHandle>> {
        if !self.uses_file_handles() {
            return Ok(None);
        }
        let mount = self.mount(identity.mount)?;
        // The source descriptor may stay open for long and pin its inode. The root is pinned
        // anyway.
        let source = match identity.mount {
            MountIndex::ROOT => Some(self.root.as_fd()),
            _ => identity.file_type.can_be_opened().then_some(file),
        };
        mount
            .handles()
            .openable_handle(self.proc_self_fd(), file, source)
    }

    /// Whether files may be opened by handle.
    pub(super) fn uses_file_handles(&self) -> bool {
        self.abilities.can_open_by_handle
            && self.options.inode_file_handles != InodeFileHandles::Never
    }

    /// The mount at an index.
    pub(super) fn mount(&self, index: MountIndex) -> io::Result<Arc<Mount>> {
        self.mounts.get(index).ok_or_else(stale)
    }

    /// The mount of a file that was just opened.
    ///
    /// # Errors
    /// EOPNOTSUPP if file handles are mandatory and the mount has none.
    pub(super) fn mount_of_new(
        &self,
        stat: &Statx,
        file: BorrowedFd<'_>,
    ) -> io::Result<MountIndex> {
        let known = self.mounts.find(stat, MountIndex::ROOT);
        if let (Some(index), true) = (
            known,
            self.options.inode_file_handles != InodeFileHandles::Mandatory,
        ) {
            return Ok(index);
        }
        let mount = self.mounts.find_or_add(stat, file)?;
        if self.options.inode_file_handles == InodeFileHandles::Mandatory {
            let identity = Identity::new(mount.index(), stat);
            if self.openable_handle(identity, file)?.is_none() {
                rate_limited!(
                    error,
                    "--inode-file-handles=mandatory, but a file system in the share has no file \
                     handles, so guests get EOPNOTSUPP there; use --inode-file-handles=prefer"
                );
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
        }
        Ok(mount.index())
    }
}
