//! SYNCFS: brings a whole file system to stable storage, and reports what could not be written.
//!
//! `syncfs(2)` reports each writeback error once to each open file, if it came after that file was
//! opened or was reported to nobody yet (`errseq_t`, `file_sample_sb_err`). A file opened for the
//! request alone would miss an error that another guest or program was told before. So a session
//! keeps one directory of each mount open from before it writes there to its end.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gangplank_fuse::{InitFlags, NodeId};

use super::budget::{Descriptor, Permit};
use super::fs::{Node, PassthroughFs};
use super::mounts::MountIndex;
use crate::sys::file;
use crate::sys::file_content;

/// One open directory for each mount that the guest has come upon.
#[derive(Debug, Default)]
pub(super) struct SyncfsDirectories {
    open: Mutex<BTreeMap<MountIndex, Arc<Descriptor>>>,
    /// Whether that of the root is among them, or could not be opened.
    root_tried: AtomicBool,
}

impl SyncfsDirectories {
    /// Closes all.
    pub(super) fn clear(&self) {
        let old = std::mem::take(&mut *self.lock());
        self.root_tried.store(false, Ordering::Relaxed);
        drop(old);
    }

    fn get(&self, mount: MountIndex) -> Option<Arc<Descriptor>> {
        self.lock().get(&mount).map(Arc::clone)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<MountIndex, Arc<Descriptor>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PassthroughFs {
    /// Opens the share's root for SYNCFS before the guest first opens a file to write.
    pub(super) fn prepare_syncfs(&self) {
        if self
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

    /// Opens a directory for SYNCFS of its mount, unless one is open. Without it, SYNCFS may miss an
    /// error, but works.
    pub(super) fn prepare_syncfs_of(&self, directory: &Node) {
        let _ = self.syncfs_directory(directory);
    }

    fn syncfs_directory(&self, directory: &Node) -> io::Result<Arc<Descriptor>> {
        let mount = directory.identity.mount;
        if let Some(open) = self.syncfs_directories.get(mount) {
            return Ok(open);
        }
        // The root's descriptor is one of those that each guest is counted with anyway.
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
        let mut open = self.syncfs_directories.lock();
        Ok(Arc::clone(open.entry(mount).or_insert(opened)))
    }

    /// Brings the file system that holds a node to stable storage; all of the guest's, where it
    /// takes them for one because it was not told of mounts.
    ///
    /// # Errors
    /// `syncfs(2)`'s: the first, after all were tried.
    pub(super) fn do_syncfs(&self, id: NodeId) -> io::Result<()> {
        let directory = self.directory(id)?;
        let own = self.syncfs_directory(&directory)?;
        let mut result = file_content::sync_file_system(own.as_fd());
        if !self.negotiated.has(InitFlags::SUBMOUNTS) {
            let others: Vec<_> = {
                let open = self.syncfs_directories.lock();
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
