//! STATFS and SYNCFS.
//!
//! `syncfs(2)` reports a writeback error once per open file description, if the error came after
//! the open or was not reported to anyone before (`errseq_t`, `file_sample_sb_err`). A file opened
//! for this request alone would miss an error that another guest or program has already seen. So a
//! session opens a directory of each mount before it first writes there, and keeps it to the end of
//! the session.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_fuse::{InitFlags, Kstatfs, NodeId};

use super::budget::{Descriptor, Permit};
use super::fs::{Node, PassthroughFs};
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

    /// Writes the file system of a node to stable storage. If mounts are not announced, the guest
    /// sees one file system, so all mounts are written.
    ///
    /// # Errors
    /// The first error of `syncfs(2)`, after all mounts were tried.
    fn syncfs(&self, id: NodeId) -> io::Result<()> {
        let directory = self.directory(id)?;
        let own = self.syncfs_directory(&directory)?;
        let mut result = file_content::sync_file_system(own.as_fd());
        if !self.state.negotiated.has(InitFlags::SUBMOUNTS) {
            let others: Vec<_> = {
                let open = self.state.syncfs_directories.lock();
                let others = open
                    .iter()
                    .filter(|(mount, _)| **mount != directory.identity.mount);
                others.map(|(_, other)| Arc::clone(other)).collect()
            };
            for other in others {
                result = result.and(file_content::sync_file_system(other.as_fd()));
            }
        }
        result
    }
}

impl PassthroughFs {
    /// Opens the share's root for SYNCFS before the guest first opens a file for writing.
    pub(super) fn prepare_syncfs(&self) {
        if self
            .state
            .syncfs_directories
            .root_tried
            .swap(true, Ordering::Relaxed)
        {
            return;
        }
        if let Ok(root) = self.node(NodeId::ROOT) {
            self.prepare_syncfs_of(&root);
        }
    }

    /// Opens a directory for SYNCFS of its mount, unless one is open. If this fails, SYNCFS still
    /// works but may miss an error.
    pub(super) fn prepare_syncfs_of(&self, directory: &Node) {
        let _ = self.syncfs_directory(directory);
    }

    fn syncfs_directory(&self, directory: &Node) -> io::Result<Arc<Descriptor>> {
        let mount = directory.identity.mount;
        if let Some(open) = self.state.syncfs_directories.get(mount) {
            return Ok(open);
        }
        // The root's descriptor is not counted for the guest.
        let permit = match mount == self.share.root_identity.mount {
            true => Permit::uncounted(),
            false => self.acquire_file_permit()?,
        };
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let proc = self.share.proc_self_fd();
        let fd = self
            .share
            .open(|| file::reopen_through_proc(proc, directory.as_fd(), flags))?;
        let opened = Arc::new(Descriptor::new(fd, permit));
        let mut open = self.state.syncfs_directories.lock();
        Ok(Arc::clone(open.entry(mount).or_insert(opened)))
    }
}
