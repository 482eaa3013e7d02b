//! One guest's file system on the share: resolving node ids, acquiring permits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Arc;

use gangplank_fuse::{InitFlags, NodeId};

use super::budget::Descriptor;
use super::credentials::Impersonation;
use super::file_type::FileType;
use super::guest_state::GuestState;
use super::inode_ref::InodeRef;
use super::inode_shard::{SHARDS, Shard};
use super::inode_table::Access;
use super::mounts::Identity;
use super::open_files::OpenFiles;
use super::posix_locks::PosixLocks;
use super::share::Share;
use super::syncfs_directories::SyncfsDirectories;
use crate::state::arena::Arena;
use crate::state::descriptors::{Descriptors, Kind, Owner};
use crate::state::mounts;

/// One guest's file system. Dropping it frees everything the guest holds.
#[derive(Debug)]
pub struct PassthroughFs {
    /// Dropped before the share.
    pub(super) state: GuestState,
    pub(super) share: Arc<Share>,
}

/// An inode in use by a request, with the descriptor that reaches it.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) file_type: FileType,
    pub(super) identity: Identity,
    descriptor: Arc<Descriptor>,
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Makes the state in an arena whole after a worker died in the middle of a change, and closes all
/// descriptors that belong to nobody. `kept` are those of the process itself.
///
/// For the next worker, before it starts threads or opens anything.
///
/// # Errors
/// Those of close_range(2).
pub fn correct(arena: &Arc<Arena>, kept: impl Iterator<Item = RawFd>) -> io::Result<()> {
    for shard in 0..SHARDS {
        Shard::correct(arena, shard);
    }
    OpenFiles::correct(arena);
    PosixLocks::correct(arena);
    SyncfsDirectories::correct(arena);
    let descriptors = Descriptors::new(arena);
    // Others tell about them.
    for kind in [Kind::Mount, Kind::Process] {
        descriptors.correct(kind, |_, _| false);
    }
    for descriptor in mounts::descriptors(arena) {
        descriptors.own(descriptor, Owner::new(Kind::Mount, 0));
    }
    kept.for_each(|descriptor| descriptors.own(descriptor, Owner::PROCESS));
    descriptors.close_unowned()
}

impl PassthroughFs {
    /// Creates a guest's file system, with what its state holds: at first nothing.
    #[must_use]
    pub fn new(share: Arc<Share>) -> Self {
        let state = GuestState::new(&share);
        Self { share, state }
    }

    /// Number of inodes the guest holds, not counting the root.
    #[must_use]
    pub fn held_inodes(&self) -> usize {
        self.state.inodes.len()
    }

    /// Number of files and directories the guest has open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.state.files.len()
    }

    /// Resolves a node id to its inode. An inode without a descriptor is reopened.
    ///
    /// # Errors
    /// ESTALE if the guest does not hold the node id or the inode no longer exists; ENFILE.
    pub(super) fn node(&self, id: NodeId) -> io::Result<Node> {
        if id == NodeId::ROOT {
            return Ok(Node {
                id,
                file_type: FileType::Directory,
                identity: self.share.root_identity,
                descriptor: Arc::clone(&self.share.root),
            });
        }
        let known = self.state.inodes.get(id)?;
        let descriptor = match known.access {
            Access::Descriptor(descriptor) => descriptor,
            Access::Ref(inode_ref) => match self.reopen(known.identity, &inode_ref) {
                Ok(descriptor) => self.state.inodes.set_descriptor(id, descriptor)?,
                // The inode may still be open, so an open file's descriptor can reach it.
                Err(error) => self.state.files.any_of(id).ok_or(error)?,
            },
        };
        Ok(Node {
            id,
            file_type: known.identity.file_type,
            identity: known.identity,
            descriptor,
        })
    }

    /// Opens a descriptor for an inode that has none.
    ///
    /// # Errors
    /// ESTALE if the inode no longer exists; ENFILE.
    fn reopen(&self, identity: Identity, inode_ref: &InodeRef) -> io::Result<Arc<Descriptor>> {
        let permit = self.acquire_inode_permit()?;
        let fd = self.open_or_evict(|| self.open_inode_ref(identity, inode_ref))?;
        Ok(Arc::new(Descriptor::new(fd, permit)))
    }

    /// How this session creates objects.
    pub(super) fn impersonation(&self) -> Impersonation<'_> {
        Impersonation {
            id_map: &self.share.options.id_map,
            change_ids: self.share.abilities.can_change_credentials && !self.maps_ownership(),
            apply_umask: self.state.negotiated.has(InitFlags::DONT_MASK) && !self.maps_ownership(),
        }
    }

    /// Resolves a node id to a directory.
    ///
    /// # Errors
    /// Those of [`PassthroughFs::node`]; ENOTDIR.
    pub(super) fn directory(&self, id: NodeId) -> io::Result<Node> {
        let node = self.node(id)?;
        if node.file_type == FileType::Directory {
            return Ok(node);
        }
        Err(io::Error::from_raw_os_error(libc::ENOTDIR))
    }

    /// Rejects a change of a read-only share.
    ///
    /// # Errors
    /// EROFS.
    pub(super) fn check_writable(&self) -> io::Result<()> {
        if self.share.options.readonly {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        Ok(())
    }
}
