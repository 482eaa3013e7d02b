//! Inodes that their server calls stale (ESTALE), although the files are there.
//!
//! A server that was started again, or a FUSE server that has given up a node, may not know what
//! the host's kernel means by an inode. The kernel asks anew when a path is walked, but a
//! descriptor has no path to walk. So the daemon walks the one that the descriptor had last, one
//! component at a time from the share's root, as far as it leads to the same inode. The guest's
//! kernel does the rest: after ESTALE it looks all names up again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gangplank_fuse::NodeId;

use super::budget::Descriptor;
use super::errno::stale;
use super::fs::PassthroughFs;
use super::inode_table::Access;
use super::reopen::{DELETED, component, open_component};
use crate::sys::file;

impl PassthroughFs {
    /// Replaces the descriptor of a node by one that was opened by name.
    ///
    /// # Errors
    /// ESTALE if the name is gone or leads to another inode; ENFILE.
    pub(super) fn look_up_again(&self, id: NodeId) -> io::Result<()> {
        // There is no way to the share's root but its descriptor.
        if id == NodeId::ROOT {
            return Err(stale());
        }
        let known = self.state.inodes.get(id)?;
        // Without a descriptor, the inode was looked up by name just now.
        let Access::Descriptor(old) = known.access else {
            return Err(stale());
        };
        let path = self.share.path_in_share(old.as_fd())?.ok_or_else(stale)?;
        // The kernel also says so of a name that it has dropped from memory, since the server did
        // not know it.
        let path = path.strip_suffix(DELETED).unwrap_or(&path);
        let permit = self.acquire_inode_permit()?;
        let mut reached: Option<OwnedFd> = None;
        for name in path.split(|byte| *byte == b'/') {
            let from = reached
                .as_ref()
                .map_or(self.share.root.as_fd(), AsFd::as_fd);
            reached = Some(open_component(from, &component(name)?)?);
        }
        let found = reached.ok_or_else(stale)?;
        let stat = file::identity(found.as_fd())?;
        if !self.share.is_identity_of(known.identity, &stat) {
            return Err(stale());
        }
        let new = Arc::new(Descriptor::new(found, permit));
        self.state.inodes.replace_descriptor(id, &old, &new)
    }
}
