//! The files and directories that a guest has open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gangplank_fuse::{Handle, NodeId};
use parking_lot::RwLock;

use super::budget::Descriptor;
use super::dir_stream::DirStream;
use super::errno::bad_handle;
use super::mounts::Mount;
use super::open_flags::OpenFlags;
use super::slab::{Key, Slab};

/// One open file or directory.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// The node that is open.
    pub(super) node: NodeId,
    descriptor: Arc<Descriptor>,
    /// Whether the descriptor is open for writing.
    pub(super) writable: bool,
    /// Whether transfers bypass the page cache; cleared when direct I/O fails.
    pub(super) direct: AtomicBool,
    /// Whether `RWF_NOWAIT` works on this file; cleared when it fails.
    pub(super) supports_nowait: AtomicBool,
    /// Whether a short read ends at the end of the file or before an error.
    pub(super) short_read_is_final: bool,
    /// Whether close can report an error that no other call reports.
    pub(super) close_reports_errors: bool,
    /// Whether the descriptor may be cached after the close.
    pub(super) cacheable: bool,
    /// For a directory: how far it is listed.
    pub(super) dir_stream: Option<Box<DirStream>>,
}

impl OpenFile {
    /// A regular file that is not in a table yet.
    pub(super) fn file(
        node: NodeId,
        descriptor: Arc<Descriptor>,
        flags: OpenFlags,
        mount: &Mount,
    ) -> Self {
        Self {
            node,
            descriptor,
            writable: flags.write,
            direct: AtomicBool::new(flags.direct),
            supports_nowait: AtomicBool::new(true),
            short_read_is_final: mount.short_read_is_final(),
            close_reports_errors: mount.close_reports_errors(),
            cacheable: flags.is_read_only()
                && mount.short_read_is_final()
                && !mount.close_reports_errors(),
            dir_stream: None,
        }
    }

    /// A directory that is not in a table yet.
    pub(super) fn directory(node: NodeId, descriptor: Descriptor, dir_stream: DirStream) -> Self {
        Self {
            node,
            descriptor: Arc::new(descriptor),
            writable: false,
            direct: AtomicBool::new(false),
            supports_nowait: AtomicBool::new(false),
            short_read_is_final: true,
            close_reports_errors: false,
            cacheable: false,
            dir_stream: Some(Box::new(dir_stream)),
        }
    }

    /// The file's descriptor.
    pub(super) fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    /// Whether transfers bypass the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// All open files of one guest.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    table: RwLock<Slab<Arc<OpenFile>>>,
}

impl OpenFiles {
    /// Adds an open file.
    ///
    /// # Errors
    /// ENFILE if the table is full.
    pub(super) fn insert(&self, file: OpenFile) -> io::Result<Handle> {
        let file = Arc::new(file);
        let key = self.table.write().insert(file)?;
        Ok(Handle::new(key.raw()))
    }

    /// The open file of a handle on `node`.
    ///
    /// # Errors
    /// EBADF for an unknown handle or a handle of another node.
    pub(super) fn get(&self, handle: Handle, node: NodeId) -> io::Result<Arc<OpenFile>> {
        let table = self.table.read();
        let file = Key::from_raw(handle.get()).and_then(|key| table.get(key));
        file.filter(|file| file.node == node)
            .cloned()
            .ok_or_else(bad_handle)
    }

    /// Removes the open file of a handle on `node`.
    ///
    /// # Errors
    /// EBADF for an unknown handle or a handle of another node.
    pub(super) fn remove(&self, handle: Handle, node: NodeId) -> io::Result<Arc<OpenFile>> {
        let key = Key::from_raw(handle.get()).ok_or_else(bad_handle)?;
        let mut table = self.table.write();
        if table.get(key).is_none_or(|file| file.node != node) {
            return Err(bad_handle());
        }
        table.remove(key).ok_or_else(bad_handle)
    }

    /// A descriptor of any open file on a node. Scans the whole table.
    pub(super) fn any_of(&self, node: NodeId) -> Option<Arc<Descriptor>> {
        let table = self.table.read();
        let mut files = table.iter_from(0).map(|(_, file)| file);
        let file = files.find(|file| file.node == node)?;
        Some(Arc::clone(&file.descriptor))
    }

    /// Closes all files.
    pub(super) fn clear(&self) {
        let old = std::mem::take(&mut *self.table.write());
        // Without the lock, because close may block.
        drop(old);
    }

    /// Number of open files.
    pub(super) fn len(&self) -> usize {
        self.table.read().len()
    }
}
