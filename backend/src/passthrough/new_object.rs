//! What a new object gets after the host has made it: its label (`--security-label`), and the record
//! of what the host does not know of it (`--ownership=mapped`).
//!
//! The host makes objects without them, so others see one incomplete for a moment. An object that
//! does not get what it should have is removed again. After a death in between, the repeated request
//! completes the object. What is a regular file on the host but something else to the guest appears
//! complete.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gangplank_fuse::{EntryOut, InitFlags, NodeId};

use super::budget::Permit;
use super::file_type::FileType;
use super::fs::{Node, PassthroughFs};
use super::ownership::Record;
use crate::session::Creator;
use crate::sys::{file, file_content, namespace_ops, xattr};

/// What a new object is to get.
#[derive(Debug)]
pub(super) struct Additions<'a> {
    /// The host's name of the label's attribute, and the label.
    label: Option<(Cow<'a, CStr>, &'a [u8])>,
    record: Option<Record>,
}

impl PassthroughFs {
    /// What a new object in `parent` is to get. `mode` has the type. Called before the object is
    /// made, which a label that may not be set prevents.
    ///
    /// # Errors
    /// Those of [`PassthroughFs::host_xattr_name`] and of `statx(2)`.
    pub(super) fn additions<'a>(
        &self,
        creator: &Creator<'a>,
        parent: &Node,
        mode: u32,
        rdev: Option<(u32, u32)>,
    ) -> io::Result<Additions<'a>> {
        let label = match creator.label {
            Some(label) if self.state.negotiated.has(InitFlags::SECURITY_CTX) => {
                Some((self.host_xattr_name(label.name)?, label.value))
            }
            _ => None,
        };
        Ok(Additions {
            label,
            record: self.new_record(creator, parent, mode, rdev)?,
        })
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
        additions: &Additions<'_>,
    ) -> io::Result<EntryOut> {
        let file = self.open_or_evict(|| file::open_path(parent.as_fd(), name))?;
        self.complete_made(file.as_fd(), Some((parent, name)), additions)?;
        let stat = file::stat(file.as_fd())?;
        self.insert(parent, Some(name), file, permit, &stat)
    }

    /// Makes a regular file with this content, which is something else to the guest, and enters it
    /// in the table.
    ///
    /// # Errors
    /// Those of `openat(2)`, `linkat(2)` and `setxattr(2)`; then there is no such file.
    pub(super) fn make_recorded(
        &self,
        permit: Permit,
        parent: &Node,
        name: &CStr,
        additions: &Additions<'_>,
        content: &[u8],
    ) -> io::Result<EntryOut> {
        let mode = self.host_mode(libc::S_IFREG);
        let open = |name: &CStr, flags: i32| {
            let flags = flags | libc::O_WRONLY;
            self.open_or_evict(|| file::open_at(parent.as_fd(), name, flags, mode))
        };
        let fill = |file: &OwnedFd, name| {
            let filled = file_content::append(file.as_fd(), content).and_then(|written| {
                match written == content.len() {
                    true => self.complete_made(file.as_fd(), None, additions),
                    false => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                }
            });
            if filled.is_err()
                && let Some(name) = name
            {
                // The first error says why.
                let _ = remove_made(parent.as_fd(), name, file.as_fd());
            }
            filled
        };
        match open(c".", libc::O_TMPFILE) {
            Ok(file) => {
                fill(&file, None)?;
                let proc = self.share.proc_self_fd();
                namespace_ops::link(proc, file.as_fd(), parent.as_fd(), name)?;
            }
            // The file system has no files without a name.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                let file = open(name, libc::O_CREAT | libc::O_EXCL)?;
                fill(&file, Some(name))?;
            }
            Err(error) => return Err(error),
        }
        self.look_up_with(permit, parent, name)
    }

    /// Completes an object that was just made, under a name or without one.
    ///
    /// # Errors
    /// Those of `setxattr(2)`; then the name is removed.
    pub(super) fn complete_made(
        &self,
        made: BorrowedFd<'_>,
        name: Option<(&Node, &CStr)>,
        additions: &Additions<'_>,
    ) -> io::Result<()> {
        let complete = || {
            if let Some((name, value)) = &additions.label {
                xattr::set(self.share.proc_self_fd(), made, name, value, 0)?;
            }
            match &additions.record {
                Some(record) => self.set_record(made, record),
                None => Ok(()),
            }
        };
        let completed = complete();
        if completed.is_err()
            && let Some((parent, name)) = name
        {
            // The first error says why.
            let _ = remove_made(parent.as_fd(), name, made);
        }
        completed
    }

    /// Completes an object that an earlier process may have made and not completed. Returns whether
    /// there was anything to do.
    ///
    /// # Errors
    /// Those of `setxattr(2)`.
    pub(super) fn complete_again(
        &self,
        parent: NodeId,
        id: NodeId,
        creator: &Creator<'_>,
        mode: u32,
    ) -> io::Result<bool> {
        let additions = self.additions(creator, &self.directory(parent)?, mode, None)?;
        self.complete_made(self.node(id)?.as_fd(), None, &additions)?;
        Ok(additions.label.is_some() || additions.record.is_some())
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
