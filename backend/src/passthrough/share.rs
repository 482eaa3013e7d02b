//! What all guests have in common: the directory, the options, the descriptor budget.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use super::budget::{Budget, Descriptor, Permit};
use super::inode_table::{FileType, InodeTable, stale};
use super::mounts::{Identity, Mount, MountIndex, Mounts};
use super::options::{InodeFileHandles, Options};
use super::reopen::InodeRef;
use crate::rate_limited;
use crate::sys::file::{self, Statx};

/// What the process is allowed to do, found out when it was confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Threads may take on other user and group ids (`CAP_SETUID`, `CAP_SETGID`).
    pub can_change_credentials: bool,
    /// Files may be opened by handle (`CAP_DAC_READ_SEARCH` where it counts).
    pub can_open_by_handle: bool,
}

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Its attributes could not be read.
    #[error("cannot read the attributes of the shared directory")]
    Attributes(#[source] io::Error),
    /// It is something else.
    #[error("what is to be shared is not a directory")]
    NotDirectory,
    /// File handles were demanded.
    #[error(
        "--inode-file-handles=mandatory: files cannot be opened by handle here, for lack of CAP_DAC_READ_SEARCH or of \
         a file system that has handles; use --inode-file-handles=prefer or =never"
    )]
    NoHandles,
}

/// The shared directory and what is known of it. One for the daemon, made once it is confined.
#[derive(Debug)]
pub struct Share {
    pub(super) root: Arc<Descriptor>,
    pub(super) root_identity: Identity,
    pub(super) proc_self_fd: OwnedFd,
    pub(super) options: Options,
    pub(super) abilities: Abilities,
    pub(super) mounts: Mounts,
    pub(super) budget: Arc<Budget>,
    guests: Mutex<Vec<Weak<InodeTable>>>,
    /// When inodes were last asked for descriptors, if none gave any.
    pub(super) last_failed_eviction: Mutex<Option<Instant>>,
}

impl Share {
    /// Shares the directory `root`. `proc_self_fd` is an open `/proc/self/fd`, by which the process reopens its own
    /// descriptors wherever it may be confined.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn new(
        root: OwnedFd,
        proc_self_fd: OwnedFd,
        options: Options,
        abilities: Abilities,
    ) -> Result<Arc<Self>, ShareError> {
        let stat = file::stat(root.as_fd()).map_err(ShareError::Attributes)?;
        if u32::from(stat.stx_mode) & libc::S_IFMT != libc::S_IFDIR {
            return Err(ShareError::NotDirectory);
        }
        let mounts = Mounts::default();
        let mount = mounts
            .find_or_add(&stat, root.as_fd())
            .map_err(ShareError::Attributes)?;
        if options.inode_file_handles == InodeFileHandles::Mandatory {
            let handle = mount.handles().openable_handle(
                proc_self_fd.as_fd(),
                root.as_fd(),
                Some(root.as_fd()),
            );
            if !abilities.can_open_by_handle || handle.is_none() {
                return Err(ShareError::NoHandles);
            }
        }
        // The root comes on top of what the guests may hold.
        let permit = Permit::uncounted();
        Ok(Arc::new(Self {
            root: Arc::new(Descriptor::new(root, permit)),
            root_identity: Identity {
                mount: mount.index(),
                ino: stat.stx_ino,
            },
            proc_self_fd,
            budget: Budget::new(options.fd_budget),
            options,
            abilities,
            mounts,
            guests: Mutex::default(),
            last_failed_eviction: Mutex::default(),
        }))
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Descriptors that guests hold at present, all together.
    #[must_use]
    pub fn held_descriptors(&self) -> u64 {
        self.budget.held()
    }

    pub(super) fn proc_self_fd(&self) -> BorrowedFd<'_> {
        self.proc_self_fd.as_fd()
    }

    /// Adds a guest's table to those that give up descriptors when they get scarce.
    pub(super) fn register(&self, inodes: &Arc<InodeTable>) {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.retain(|guest| guest.strong_count() > 0);
        guests.push(Arc::downgrade(inodes));
    }

    /// The tables of all guests.
    pub(super) fn registered(&self) -> Vec<Arc<InodeTable>> {
        let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.iter().filter_map(Weak::upgrade).collect()
    }

    /// A descriptor for an inode that none holds.
    ///
    /// # Errors
    /// ESTALE where the inode is gone, ENFILE.
    pub(super) fn reopen(
        &self,
        identity: Identity,
        recall: &InodeRef,
    ) -> io::Result<Arc<Descriptor>> {
        let permit = self.acquire_permit()?;
        let fd = self.open(|| self.open_inode_ref(identity, recall))?;
        Ok(Arc::new(Descriptor::new(fd, permit)))
    }

    /// The place at a position.
    pub(super) fn mount(&self, index: MountIndex) -> io::Result<Arc<Mount>> {
        self.mounts.get(index).ok_or_else(stale)
    }

    /// The place of a file that was just opened.
    ///
    /// # Errors
    /// EOPNOTSUPP where handles are mandatory and this place has none.
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
            let file_type = FileType::from_mode(u32::from(stat.stx_mode));
            let identity = Identity {
                mount: mount.index(),
                ino: stat.stx_ino,
            };
            if self
                .openable_handle(identity, file, file_type.can_be_opened())
                .is_none()
            {
                rate_limited!(
                    error,
                    "--inode-file-handles=mandatory, and a file system in the share has no handles: guests get EOPNOTSUPP"
                );
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
            }
        }
        Ok(mount.index())
    }
}
