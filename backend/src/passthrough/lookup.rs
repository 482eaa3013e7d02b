//! LOOKUP and FORGET.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gangplank_fuse::{EntryOut, InitFlags, NodeId};

use super::budget::{Descriptor, Permit};
use super::file_type::FileType;
use super::fs::{Node, PassthroughFs};
use super::inode_table::{Found, IsNew};
use super::mounts::Identity;
use crate::session::file_system::Lookup;
use crate::session::{Name, events};
use crate::sys::file::{self, Statx};

impl Lookup for PassthroughFs {
    /// Looks up a name.
    ///
    /// A name that does not exist and an inode that the guest knows take one system call, or two if
    /// a file handle has to be compared. An inode that the guest does not know takes two if
    /// `LookupPredictor` expects a new one, else three.
    fn lookup(&self, parent: NodeId, name: Name<'_>) -> io::Result<EntryOut> {
        let parent = self.directory(parent)?;
        match self.look_up_in(&parent, name.as_c_str()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.negative_entry(),
            result => result,
        }
    }

    fn find_again(&self, node: NodeId) -> bool {
        self.look_up_again(node).is_ok()
    }

    fn forget(&self, node: NodeId, count: u64) {
        // The root always stays, even if the guest forgets it.
        if node != NodeId::ROOT && !events::node::is_own(node) {
            self.state.inodes.forget(node, count);
            let directories = &self.state.syncfs_directories;
            if directories.has_submounts() && self.state.inodes.get(node).is_err() {
                directories.forget(node);
            }
        }
    }
}

impl PassthroughFs {
    /// Looks up a name in an open directory.
    pub(super) fn look_up_in(&self, parent: &Node, name: &CStr) -> io::Result<EntryOut> {
        // If the budget is used up, inodes that the guest knows must still be found.
        if self.state.lookup_predictor.predicts_new()
            && let Some(permit) = self.try_acquire_new_inode_permit()
        {
            let found = self.look_up_with(permit, parent, name);
            if found.is_err() {
                self.state.lookup_predictor.record_failure();
            }
            return found;
        }
        let stat = file::stat_at(parent.as_fd(), name)?;
        let mut may_be_known = false;
        if let Some(mount) = self.share.mounts.find(&stat, parent.identity.mount) {
            let identity = Identity::new(mount, &stat);
            let found = match self.state.inodes.look_up(identity, stat.stx_size) {
                Found::Same(id) => Some(id),
                Found::NeedsVerification => {
                    may_be_known = true;
                    let dir = parent.as_fd();
                    let fingerprint = self.share.fingerprint_at(mount, dir, name, &stat)?;
                    self.state
                        .inodes
                        .verify(identity, stat.stx_size, &fingerprint)
                }
                Found::New => None,
            };
            if let Some(id) = found {
                self.state.lookup_predictor.record(IsNew::No);
                if self.maps_ownership() {
                    let node = self.node(id).inspect_err(|_| {
                        self.state.inodes.forget(id, 1);
                    })?;
                    let seen = self.seen(node.as_fd(), &stat);
                    return Ok(self.entry(id, parent.identity.mount, mount, &seen));
                }
                return Ok(self.entry(id, parent.identity.mount, mount, &stat));
            }
        }
        // If the guest knows the inode, it takes no more memory.
        let permit = match may_be_known {
            true => self.acquire_inode_permit()?,
            false => self.acquire_new_inode_permit()?,
        };
        self.look_up_with(permit, parent, name)
    }

    /// Looks up a name whose inode the guest does not know, with a permit for its descriptor.
    pub(super) fn look_up_with(
        &self,
        permit: Permit,
        parent: &Node,
        name: &CStr,
    ) -> io::Result<EntryOut> {
        let file = self.open_or_evict(|| file::open_path(parent.as_fd(), name))?;
        // The name may have changed its meaning since; the opened inode counts.
        let stat = file::stat(file.as_fd())?;
        self.insert(parent, Some(name), file, permit, &stat)
    }

    /// Enters an inode in the table by its `O_PATH` descriptor, or adds a lookup if it is there.
    /// `name` is its name in `directory`, if it has one.
    pub(super) fn insert(
        &self,
        directory: &Node,
        name: Option<&CStr>,
        file: OwnedFd,
        permit: Permit,
        stat: &Statx,
    ) -> io::Result<EntryOut> {
        let parent = directory.identity.mount;
        let mount = self.share.mount_of_new(stat, file.as_fd())?;
        let identity = Identity::new(mount, stat);
        let descriptor = Arc::new(Descriptor::new(file, permit));
        let fingerprint = || self.share.fingerprint(mount, descriptor.as_fd(), stat);
        let (id, is_new) =
            self.state
                .inodes
                .insert(identity, stat.stx_size, &descriptor, fingerprint)?;
        self.state.lookup_predictor.record(is_new);
        if mount != parent && is_new == IsNew::Yes && identity.file_type == FileType::Directory {
            let is_announced = self.state.negotiated.has(InitFlags::SUBMOUNTS);
            let directories = &self.state.syncfs_directories;
            directories.register(mount, id, is_announced);
        }
        if is_new == IsNew::Yes && identity.file_type == FileType::Directory {
            self.watch_new(id, descriptor.as_fd());
        }
        if is_new == IsNew::Yes {
            self.note_new(id, identity, &descriptor, stat, (directory, name));
        }
        let seen = self.seen(descriptor.as_fd(), stat);
        Ok(self.entry(id, parent, mount, &seen))
    }
}
