//! MKDIR, MKNOD, SYMLINK, READLINK, LINK, UNLINK, RMDIR and RENAME.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;

use gangplank_fuse::{EntryOut, NodeId};

use super::attr_reply::decode_dev;
use super::file_type::FileType;
use super::fs::PassthroughFs;
use crate::session::file_system::Namespace;
use crate::session::{Creator, Name};
use crate::sys::{file, namespace_ops};

impl Namespace for PassthroughFs {
    /// Creates a directory.
    fn mkdir(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
    ) -> io::Result<EntryOut> {
        self.check_writable()?;
        let parent = self.directory(parent)?;
        let name = name.as_c_str();
        let mode = libc::S_IFDIR | mode & 0o7777;
        let additions = self.additions(creator, &parent, mode, None)?;
        // Acquired first: after the object exists, the request must not fail for lack of a
        // descriptor.
        let permit = self.acquire_new_inode_permit()?;
        self.impersonation()
            .create(creator, self.host_mode(mode), |mode| {
                namespace_ops::make_directory(parent.as_fd(), name, mode)
            })?;
        self.enter_made(permit, &parent, name, &additions)
    }

    /// Creates a file, FIFO, socket or device node.
    fn mknod(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        rdev: u32,
    ) -> io::Result<EntryOut> {
        self.check_writable()?;
        let parent = self.directory(parent)?;
        let name = name.as_c_str();
        let (major, minor) = decode_dev(rdev);
        let is_device = matches!(mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
        let device = is_device.then_some((major, minor));
        let additions = self.additions(creator, &parent, with_type(mode), device)?;
        let permit = self.acquire_new_inode_permit()?;
        if self.maps_ownership() {
            return self.make_recorded(permit, &parent, name, &additions, b"");
        }
        self.impersonation().create(creator, mode, |mode| {
            namespace_ops::make_node(parent.as_fd(), name, mode, major, minor)
        })?;
        self.enter_made(permit, &parent, name, &additions)
    }

    /// Creates a symbolic link.
    fn symlink(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        target: &CStr,
    ) -> io::Result<EntryOut> {
        self.check_writable()?;
        let parent = self.directory(parent)?;
        let name = name.as_c_str();
        let additions = self.additions(creator, &parent, libc::S_IFLNK | 0o777, None)?;
        let permit = self.acquire_new_inode_permit()?;
        if self.maps_ownership() {
            let target = target.to_bytes();
            return self.make_recorded(permit, &parent, name, &additions, target);
        }
        self.impersonation().create(creator, 0o777, |_| {
            namespace_ops::make_symlink(target, parent.as_fd(), name)
        })?;
        self.enter_made(permit, &parent, name, &additions)
    }

    /// Reads the target of a symbolic link.
    fn readlink(&self, id: NodeId, target: &mut [u8]) -> io::Result<usize> {
        let node = self.node(id)?;
        if self.maps_ownership() && node.file_type == FileType::Regular {
            return self.read_recorded_link(&node, target);
        }
        if node.file_type != FileType::Symlink {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let length = file::read_link(node.as_fd(), target)?;
        // readlinkat(2) truncates a target that does not fit; a truncated target names another
        // file.
        if length == target.len() {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        Ok(length)
    }

    /// Adds a name to an inode.
    fn link(&self, id: NodeId, new_parent: NodeId, new_name: Name<'_>) -> io::Result<EntryOut> {
        self.check_writable()?;
        let node = self.node(id)?;
        let parent = self.directory(new_parent)?;
        namespace_ops::link(
            self.share.proc_self_fd(),
            node.as_fd(),
            parent.as_fd(),
            new_name.as_c_str(),
        )?;
        // Not looked up by name, because the name may refer to another inode by now.
        let stat = file::stat(node.as_fd())?;
        self.state.inodes.add_lookup(id)?;
        self.state
            .inodes
            .with_known_size(id, |known| known.raise(stat.stx_size));
        let stat = self.seen(node.as_fd(), &stat);
        Ok(self.entry(id, parent.identity.mount, node.identity.mount, &stat))
    }

    /// Removes a name that is not a directory.
    fn unlink(&self, parent: NodeId, name: Name<'_>) -> io::Result<()> {
        self.check_writable()?;
        let parent = self.directory(parent)?;
        self.hold_removed(&parent, name.as_c_str());
        namespace_ops::unlink(parent.as_fd(), name.as_c_str())
    }

    /// Removes an empty directory.
    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> io::Result<()> {
        self.check_writable()?;
        let parent = self.directory(parent)?;
        let name = name.as_c_str();
        let remove = || namespace_ops::remove_directory(parent.as_fd(), name);
        self.wait_for_hidden_names(&parent, name, remove)
    }

    fn complete(
        &self,
        parent: NodeId,
        node: NodeId,
        creator: &Creator<'_>,
        mode: u32,
    ) -> io::Result<bool> {
        self.complete_again(parent, node, creator, mode)
    }

    /// Renames.
    fn rename(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> io::Result<()> {
        const SUPPORTED: u32 =
            libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
        self.check_writable()?;
        if flags & !SUPPORTED != 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let from = self.directory(parent)?;
        let to = self.directory(new_parent)?;
        let (name, new_name) = (name.as_c_str(), new_name.as_c_str());
        let is_exchange = flags & libc::RENAME_EXCHANGE != 0;
        if !is_exchange {
            self.hold_removed(&to, new_name);
        }
        let rename = || namespace_ops::rename(from.as_fd(), name, to.as_fd(), new_name, flags);
        if flags & libc::RENAME_WHITEOUT == 0 {
            rename()?;
        } else {
            // The whiteout is a new object, so it gets the caller's owner.
            self.impersonation().create(creator, 0, |_| rename())?;
        }
        self.note_renamed(&to, new_name);
        if is_exchange {
            self.note_renamed(&from, name);
        }
        Ok(())
    }
}

/// A mode with its type. MKNOD without a type makes a regular file (mknod(2)).
pub(super) fn with_type(mode: u32) -> u32 {
    match mode & libc::S_IFMT {
        0 => mode | libc::S_IFREG,
        _ => mode,
    }
}
