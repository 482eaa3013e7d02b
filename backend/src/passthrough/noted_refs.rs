//! With a holder in use ([`crate::holder`]), each inode that the guest learns gets its reference at
//! once: after all processes have died, nothing else leads to it.
//!
//! Where files are opened by handle, that takes one system call for a new inode. Otherwise it is
//! the name and the directory, which takes none: the directory has its own reference already. A
//! rename by the guest takes one to find out what was renamed. A rename by others is not noted: the
//! inode is ESTALE afterwards, until the guest's kernel has looked it up again.
//!
//! What the guest has open and loses its name is held, since no reference leads to it.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use gangplank_fuse::NodeId;

use super::budget::Descriptor;
use super::fs::{Node, PassthroughFs};
use super::inode_ref::{InodeRef, birth_time};
use super::mounts::Identity;
use super::options::InodeFileHandles;
use super::remembered_names::{RememberedDir, RememberedName};
use crate::sys::file::{self, Statx};

impl PassthroughFs {
    /// Notes how to find an inode again that the guest has just learned, by its place: directory
    /// and name. Without a name it is held.
    pub(super) fn note_new(
        &self,
        id: NodeId,
        identity: Identity,
        descriptor: &Arc<Descriptor>,
        stat: &Statx,
        place: (&Node, Option<&CStr>),
    ) {
        let inodes = &self.state.inodes;
        let Some(holder) = inodes.holder() else {
            return;
        };
        let (directory, Some(name)) = place else {
            return inodes.hold_inode(id, descriptor, holder);
        };
        if let Ok(Some(handle)) = self.share.openable_handle(identity, descriptor.as_fd()) {
            return inodes.note_ref(id, &InodeRef::Handle(handle));
        }
        if let Some(by_name) = self.ref_by_name(directory, name, stat) {
            inodes.note_ref(id, &by_name);
        } else if let Ok(inode_ref) = self.inode_ref(identity, descriptor.as_fd()) {
            inodes.note_ref(id, &inode_ref);
        }
    }

    /// Notes the new name of what the guest has renamed, if it is known by name.
    pub(super) fn note_renamed(&self, directory: &Node, name: &CStr) {
        let inodes = &self.state.inodes;
        if inodes.holder().is_none() {
            return;
        }
        let Some((identity, stat)) = self.identify_at(directory, name) else {
            return;
        };
        if let Some((id, InodeRef::Name { .. })) = inodes.find_noted(identity)
            && let Some(inode_ref) = self.ref_by_name(directory, name, &stat)
        {
            inodes.note_ref(id, &inode_ref);
        }
    }

    /// Has the holder hold what is about to lose this name, if the guest has it open and no
    /// reference leads to it afterwards.
    pub(super) fn hold_removed(&self, directory: &Node, name: &CStr) {
        let inodes = &self.state.inodes;
        let Some(holder) = inodes.holder() else {
            return;
        };
        let Some((identity, stat)) = self.identify_at(directory, name) else {
            return;
        };
        let Some(id) = inodes.find_id(identity).filter(|id| inodes.is_open(*id)) else {
            return;
        };
        let is_by_handle = matches!(inodes.noted_ref(id), Some(InodeRef::Handle(_)));
        if is_by_handle && stat.stx_nlink > 1 {
            return;
        }
        if self.node(id).is_ok()
            && let Some(descriptor) = inodes.descriptor_of(identity)
        {
            inodes.hold_inode(id, &descriptor, holder);
        }
    }

    fn identify_at(&self, directory: &Node, name: &CStr) -> Option<(Identity, Statx)> {
        let stat = file::identity_at(directory.as_fd(), name).ok()?;
        let mount = self.share.mounts.find(&stat, directory.identity.mount)?;
        Some((Identity::new(mount, &stat), stat))
    }

    /// The reference of what has this name in a directory. `None` if names do not lead to it: the
    /// file system has no birth times, or nothing is noted of the directory.
    fn ref_by_name(&self, directory: &Node, name: &CStr, stat: &Statx) -> Option<InodeRef> {
        if self.share.options.inode_file_handles != InodeFileHandles::Prefer {
            return None;
        }
        let birth_time = birth_time(stat)?;
        let dir = match directory.id {
            NodeId::ROOT => None,
            id => Some(self.remembered(id, directory.identity)?),
        };
        let name = RememberedName {
            dir,
            name: name.into(),
        };
        Some(InodeRef::Name { name, birth_time })
    }

    /// A known directory as others remember it.
    fn remembered(&self, id: NodeId, identity: Identity) -> Option<RememberedDir> {
        let InodeRef::Name { name, birth_time } = self.state.inodes.noted_ref(id)? else {
            return None;
        };
        let dirs = self.state.inodes.remembered_dirs();
        dirs.remember(name, identity, Some(birth_time)).ok()
    }
}
