//! STATFS and SYNCFS.
//!
//! `syncfs(2)` reports a writeback error once per open file description, if the error came after
//! the open or was not reported to anyone before (`errseq_t`, `file_sample_sb_err`). A file opened
//! for this request alone would miss an error that another guest or program has already seen. So a
//! session opens a directory of each mount before it first writes there, and keeps it until the
//! guest uses nothing there any more.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::{InitFlags, Kstatfs, NodeId};

use super::budget::{Descriptor, Permit};
use super::errno::not_openable;
use super::file_type::FileType;
use super::fs::{Node, PassthroughFs};
use super::mounts::MountIndex;
use super::syncfs_directories::WrittenMount;
use crate::session::file_system::Superblock;
use crate::sys::{file, file_content};

impl Superblock for PassthroughFs {
    /// Reads the statistics of the file system that holds a node.
    fn statfs(&self, id: NodeId) -> io::Result<Kstatfs> {
        let figures = file::file_system_stats(self.node(id)?.as_fd())?;
        Ok(Kstatfs {
            blocks: figures.f_blocks,
            bfree: figures.f_bfree,
            bavail: figures.f_bavail,
            files: figures.f_files,
            ffree: figures.f_ffree,
            bsize: u32::try_from(figures.f_bsize).unwrap_or(4096),
            namelen: u32::try_from(figures.f_namemax).unwrap_or(255),
            frsize: u32::try_from(figures.f_frsize).unwrap_or(4096),
            ..Kstatfs::default()
        })
    }

    /// Writes the file system of a node to stable storage, and all mounts that the guest has
    /// written to without knowing that they are mounts.
    ///
    /// # Errors
    /// The first error of opening a mount and of `syncfs(2)`, after all mounts were tried.
    fn syncfs(&self, id: NodeId) -> io::Result<()> {
        let directory = self.directory(id)?;
        let mount = directory.identity.mount;
        let own = match self.state.syncfs_directories.get(mount) {
            Some(open) => open,
            None => self.open_for_syncfs(&directory)?,
        };
        let mut result = file_content::sync_file_system(own.as_fd());
        for other in self.state.syncfs_directories.unannounced(mount) {
            let open = match other {
                WrittenMount::Open(open) => Ok(open),
                WrittenMount::Anchor(mount, anchor) => self.keep_for_syncfs(mount, anchor),
            };
            let synced = open.and_then(|open| file_content::sync_file_system(open.as_fd()));
            result = result.and(synced);
        }
        result
    }
}

impl PassthroughFs {
    /// Opens the mount of `node` for SYNCFS before the guest first opens a file on it for writing.
    /// If this fails, the next SYNCFS tries again, and may miss an error.
    pub(super) fn prepare_syncfs(&self, node: &Node) {
        let directories = &self.state.syncfs_directories;
        let mount = node.identity.mount;
        let is_root = mount == MountIndex::ROOT;
        if is_root && directories.root_tried.swap(true, Ordering::Relaxed) {
            return;
        }
        let inode = if is_root { NodeId::ROOT } else { node.id };
        // Of mounts, directories alone are announced, and they were registered by their lookup.
        let is_announced = is_root && self.state.negotiated.has(InitFlags::SUBMOUNTS);
        if let Some(anchor) = directories.note_write(mount, inode, is_announced) {
            let _ = self.keep_for_syncfs(mount, anchor);
        }
    }

    fn keep_for_syncfs(&self, mount: MountIndex, anchor: NodeId) -> io::Result<Arc<Descriptor>> {
        let opened = self.open_for_syncfs(&self.node(anchor)?)?;
        Ok(self.state.syncfs_directories.keep(mount, opened))
    }

    fn open_for_syncfs(&self, node: &Node) -> io::Result<Arc<Descriptor>> {
        // The root's descriptor is not counted for the guest.
        let permit = match node.id == NodeId::ROOT {
            true => Permit::uncounted(),
            false => self.acquire_file_permit()?,
        };
        let flags = match node.file_type {
            FileType::Directory => libc::O_RDONLY | libc::O_DIRECTORY,
            // A file on which another file system is mounted.
            FileType::Regular => libc::O_RDONLY,
            other => return Err(not_openable(other, false)),
        };
        let fd = self.reopen_file(node, flags)?;
        Ok(Arc::new(Descriptor::new(fd, permit)))
    }
}
