//! The state of a guest that arrives.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use gangplank_fuse::{InitFlags, NodeId};
use gangplank_service::rate_limited;

use super::super::budget::Descriptor;
use super::super::errno::not_openable;
use super::super::file_type::FileType;
use super::super::fs::PassthroughFs;
use super::super::inode_table::OpenChange;
use super::super::inode_transfer::FoundInode;
use super::super::mounts::Identity;
use super::super::open_file::OpenFile;
use super::super::open_flags::OpenFlags;
use super::listing::Listing;
use crate::state::migration::{
    Handle, Inode, Location, MigratedGuest, MigrationMode, MigrationOnError, ROOT_ID, TransferError,
};
use crate::sys::file;
use crate::sys::file_handle::FileHandle;

/// Descriptors by which file handles of the source's mounts are opened.
type SourceMounts = BTreeMap<u64, OwnedFd>;

impl PassthroughFs {
    /// Takes over a guest. If this fails, part of it is left.
    pub(super) fn load_guest(&self, guest: &MigratedGuest) -> Result<(), TransferError> {
        let state = &self.state;
        state.clear();
        state.guest_arch.reset();
        let no_room = |list, count, option| TransferError::NoRoom {
            list,
            count,
            option,
        };
        let (inodes, handles) = (guest.inodes.len(), guest.handles.len());
        let prepared = state.inodes.begin_arrival(guest.next_inode, inodes);
        prepared.map_err(|_| no_room("inodes", inodes, "--max-inode-memory"))?;
        let prepared = state.files.begin_arrival(guest.next_handle, handles);
        prepared.map_err(|_| no_room("open files", handles, "--rlimit-nofile"))?;

        let mut lost = Listing::default();
        let loaded = self.load_all(guest, &mut lost);
        if lost.count() > 0 {
            rate_limited!(
                warn,
                "{} inodes and open files of the guest are lost; it gets an error when it uses \
                 them: {lost}",
                lost.count()
            );
        }
        loaded?;
        for (parent, children) in guest.child_counts() {
            // The guest never forgets the root.
            if parent != ROOT_ID {
                state.inodes.forget(NodeId::new(parent), children);
            }
        }
        Ok(())
    }

    fn load_all(&self, guest: &MigratedGuest, lost: &mut Listing) -> Result<(), TransferError> {
        let mounts = self.source_mounts(guest);
        for inode in &guest.inodes {
            self.load_inode(inode, &mounts, lost)?;
        }
        for handle in &guest.handles {
            self.load_handle(*handle, lost)?;
        }
        Ok(())
    }

    fn load_inode(
        &self,
        inode: &Inode,
        mounts: &SourceMounts,
        lost: &mut Listing,
    ) -> Result<(), TransferError> {
        let found = match &inode.location {
            // Its place is on the command line, and a guest without it has nothing.
            Location::Root => return self.verify(inode, self.share.root.as_fd()),
            Location::Invalid => Err(TransferError::Lost(inode.id)),
            Location::Child { parent, name } => self.open_child(inode.id, *parent, name),
            Location::Path(path) => {
                self.open_below_root(path)
                    .map_err(|source| TransferError::Inode {
                        id: inode.id,
                        place: format!("'{path}'"),
                        source,
                    })
            }
            Location::FileHandle(handle) => self.open_by_handle(inode.id, handle, mounts),
        };
        let found = found.and_then(|opened| {
            self.verify(inode, opened.as_fd())?;
            self.take_in(inode.id, opened)
        });
        let found = self.or_guest_error(found, lost)?;
        let arrived = self.state.inodes.arrive(inode.id, inode.references, found);
        arrived.map_err(|source| TransferError::Inode {
            id: inode.id,
            place: "its place".to_owned(),
            source,
        })?;
        self.register_mount(inode);
        Ok(())
    }

    fn open_child(&self, id: u64, parent: u64, name: &str) -> Result<OwnedFd, TransferError> {
        let open = || {
            let parent = self.node(NodeId::new(parent))?;
            self.open_or_evict(|| file::open_path(parent.as_fd(), &CString::new(name)?))
        };
        open().map_err(|source| TransferError::Inode {
            id,
            place: format!("'{name}' in inode {parent}"),
            source,
        })
    }

    /// Opens a path without following a link.
    fn open_below_root(&self, path: &str) -> io::Result<OwnedFd> {
        let mut reached: Option<OwnedFd> = None;
        for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
            let from = reached
                .as_ref()
                .map_or(self.share.root.as_fd(), AsFd::as_fd);
            reached = Some(self.open_or_evict(|| file::open_path(from, &CString::new(name)?))?);
        }
        match reached {
            Some(reached) => Ok(reached),
            None => file::open_path(self.share.root.as_fd(), c"."),
        }
    }

    /// Opens what the source has by file handle. A handle can name any inode of a file system, also
    /// outside of the share, so the operator must have asked for them.
    fn open_by_handle(
        &self,
        id: u64,
        handle: &crate::state::migration::FileHandle,
        mounts: &SourceMounts,
    ) -> Result<OwnedFd, TransferError> {
        if self.share.options.migration.mode != MigrationMode::FileHandles {
            return Err(TransferError::HandleNotAllowed(id));
        }
        let mount = handle.mount_id;
        let source = mounts.get(&mount);
        let source = source.ok_or(TransferError::Mount { id, mount })?;
        let sought = FileHandle::from_parts(handle.handle_type, &handle.bytes);
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let opened = self.open_or_evict(|| sought.open(source.as_fd(), flags));
        opened.map_err(|source| TransferError::Inode {
            id,
            place: "its file handle".to_owned(),
            source,
        })
    }

    fn source_mounts(&self, guest: &MigratedGuest) -> SourceMounts {
        if self.share.options.migration.mode != MigrationMode::FileHandles {
            return SourceMounts::new();
        }
        let open = |path: &str| {
            let found = self.open_below_root(path)?;
            let file_type = FileType::of(&file::identity(found.as_fd())?);
            if !file_type.can_be_opened() {
                return Err(not_openable(file_type, false));
            }
            let flags = libc::O_RDONLY | libc::O_NONBLOCK;
            file::reopen_through_proc(self.share.proc_self_fd(), found.as_fd(), flags)
        };
        let mut failed = Listing::default();
        let mounts = guest.mount_paths.iter().filter_map(|(id, path)| {
            let opened = open(path).inspect_err(|error| {
                failed.add(format_args!("mount {id} at '{path}': {error}"));
            });
            Some((*id, opened.ok()?))
        });
        let mounts = mounts.collect();
        if failed.count() > 0 {
            rate_limited!(
                warn,
                "cannot open {} mounts of a guest's source: {failed}",
                failed.count()
            );
        }
        mounts
    }

    /// Compares the handle that the source has given, type and bytes.
    fn verify(&self, inode: &Inode, opened: BorrowedFd<'_>) -> Result<(), TransferError> {
        let Some(expected) = &inode.file_handle else {
            return Ok(());
        };
        let found = FileHandle::of(opened).map_err(|source| TransferError::Inode {
            id: inode.id,
            place: "its place, to compare its handle".to_owned(),
            source,
        })?;
        let is_same =
            found.kind() == expected.handle_type && found.bytes() == expected.bytes.as_slice();
        is_same
            .then_some(())
            .ok_or(TransferError::OtherInode(inode.id))
    }

    fn take_in(&self, id: u64, opened: OwnedFd) -> Result<FoundInode, TransferError> {
        let identify = || {
            let permit = self.acquire_new_inode_permit()?;
            let stat = file::stat(opened.as_fd())?;
            let mount = self.share.mount_of_new(&stat, opened.as_fd())?;
            Ok((permit, mount, stat))
        };
        let (permit, mount, stat) = identify().map_err(|source| TransferError::Inode {
            id,
            place: "its place".to_owned(),
            source,
        })?;
        Ok(FoundInode {
            identity: Identity::new(mount, &stat),
            size: stat.stx_size,
            descriptor: Arc::new(Descriptor::new(opened, permit)),
        })
    }

    /// SYNCFS has to know of a mount that the guest has come upon.
    fn register_mount(&self, inode: &Inode) {
        let Location::Child { parent, .. } = &inode.location else {
            return;
        };
        let (id, parent) = (NodeId::new(inode.id), NodeId::new(*parent));
        let (Ok(node), Ok(parent)) = (self.node(id), self.node(parent)) else {
            return;
        };
        let (mount, above) = (node.identity.mount, parent.identity.mount);
        if mount != above && node.file_type == FileType::Directory {
            let is_announced = self.state.negotiated.has(InitFlags::SUBMOUNTS);
            self.state
                .syncfs_directories
                .register(mount, id, is_announced);
        }
    }

    fn load_handle(&self, handle: Handle, lost: &mut Listing) -> Result<(), TransferError> {
        let failed = |source| TransferError::Handle {
            id: handle.id,
            inode: handle.inode,
            source,
        };
        let opened = self.open_again(handle).map_err(failed);
        let opened = self.or_guest_error(opened, lost)?;
        let node = NodeId::new(handle.inode);
        self.state.inodes.count_open(node, OpenChange::Opened);
        self.state.files.arrive(handle, opened).map_err(failed)
    }

    fn open_again(&self, handle: Handle) -> io::Result<OpenFile> {
        let node = self.node(NodeId::new(handle.inode))?;
        if node.file_type == FileType::Directory {
            return self.open_directory(&node);
        }
        let mut request = OpenFlags::of_host(handle.flags)?;
        if request.write {
            self.check_writable()?;
        }
        request.direct = request.direct && self.share.options.allow_direct_io;
        let descriptor = self.open_descriptor(&node, request, false)?;
        let mount = self.share.mount(node.identity.mount)?;
        Ok(OpenFile::file(node.id, descriptor, request, &mount))
    }

    /// `None` in place of an error if the guest is to find out about it.
    fn or_guest_error<T>(
        &self,
        result: Result<T, TransferError>,
        lost: &mut Listing,
    ) -> Result<Option<T>, TransferError> {
        match (result, self.share.options.migration.on_error) {
            (Err(error), MigrationOnError::GuestError) => {
                lost.add(gangplank_service::error_chain(&error));
                Ok(None)
            }
            (result, _) => result.map(Some),
        }
    }
}
