//! What a new object gets after the host has made it: its label (`--security-label`).
//!
//! The host makes objects without a label, so others see one for a moment. An object that does not
//! get its label is removed again. After a death in between, the repeated request completes the
//! object.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use gangplank_fuse::{EntryOut, InitFlags, NodeId};

use super::budget::Permit;
use super::file_type::FileType;
use super::fs::{Node, PassthroughFs};
use crate::session::Creator;
use crate::sys::{file, namespace_ops, xattr};

/// A label by the host's name of its attribute.
#[derive(Debug)]
pub(super) struct Label<'a> {
    name: Cow<'a, CStr>,
    value: &'a [u8],
}

impl PassthroughFs {
    /// The label that a creator wants. Called before the object is made, which a label that may not
    /// be set prevents.
    ///
    /// # Errors
    /// Those of [`PassthroughFs::host_xattr_name`].
    pub(super) fn label_of<'a>(&self, creator: &Creator<'a>) -> io::Result<Option<Label<'a>>> {
        match creator.label {
            Some(label) if self.state.negotiated.has(InitFlags::SECURITY_CTX) => Ok(Some(Label {
                name: self.host_xattr_name(label.name)?,
                value: label.value,
            })),
            _ => Ok(None),
        }
    }

    /// Completes an object that was just made under a name, and enters it in the table.
    ///
    /// # Errors
    /// Those of `setxattr(2)`; then the object is removed.
    pub(super) fn enter_made(
        &self,
        permit: Permit,
        parent: &Node,
        name: &CStr,
        label: Option<&Label<'_>>,
    ) -> io::Result<EntryOut> {
        let file = self.open_or_evict(|| file::open_path(parent.as_fd(), name))?;
        self.complete_made(file.as_fd(), Some((parent, name)), label)?;
        let stat = file::stat(file.as_fd())?;
        self.insert(parent.identity.mount, file, permit, &stat)
    }

    /// Completes an object that was just made, under a name or without one.
    ///
    /// # Errors
    /// Those of `setxattr(2)`; then the name is removed.
    pub(super) fn complete_made(
        &self,
        made: BorrowedFd<'_>,
        name: Option<(&Node, &CStr)>,
        label: Option<&Label<'_>>,
    ) -> io::Result<()> {
        let Some(label) = label else {
            return Ok(());
        };
        let set = xattr::set(self.share.proc_self_fd(), made, &label.name, label.value, 0);
        if set.is_err()
            && let Some((parent, name)) = name
        {
            // The first error says why.
            let _ = remove_made(parent.as_fd(), name, made);
        }
        set
    }

    /// Completes an object that an earlier process may have made and not completed. Returns whether
    /// there was anything to do.
    ///
    /// # Errors
    /// Those of `setxattr(2)`.
    pub(super) fn complete_again(&self, id: NodeId, creator: &Creator<'_>) -> io::Result<bool> {
        let label = self.label_of(creator)?;
        self.complete_made(self.node(id)?.as_fd(), None, label.as_ref())?;
        Ok(label.is_some())
    }
}

/// Removes a name if it still leads to the object `made`.
fn remove_made(parent: BorrowedFd<'_>, name: &CStr, made: BorrowedFd<'_>) -> io::Result<()> {
    let (named, made) = (file::stat_at(parent, name)?, file::stat(made)?);
    let identity = |stat: &file::Statx| {
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        (stat.stx_mnt_id, device, stat.stx_ino)
    };
    if identity(&named) != identity(&made) {
        return Ok(());
    }
    match FileType::of(&made) {
        FileType::Directory => namespace_ops::remove_directory(parent, name),
        _ => namespace_ops::unlink(parent, name),
    }
}
