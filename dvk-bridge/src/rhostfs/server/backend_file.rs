//! A file that is open at the daemon, in one connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gangplank_driver::{FuseSession, call};
use gangplank_fuse::{FlushIn, FopenFlags, FsyncIn, Handle, NodeId, OpenIn, OpenOut, ReleaseIn};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::backend::Backend;
use super::failure::Result;
use super::resolver::{Found, Node};

/// FSYNC syncs the data alone (`FUSE_FSYNC_FDATASYNC`).
pub(super) const DATA_ONLY: u32 = 1;

/// The state of an open file at the daemon.
#[derive(Debug)]
pub(super) enum Content {
    /// A regular file that is open.
    File {
        /// The daemon's handle.
        fh: Handle,
        /// Whether closing requires a FLUSH.
        flush: bool,
        /// Counts the file for its client.
        _counted: FileCount,
    },
    /// A regular file that is closed until its next use.
    Parked,
    /// Any other file, known by its node only.
    Other,
}

/// Counts the files of a client that are open at the daemon.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenCount(Arc<AtomicUsize>);

impl OpenCount {
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn one(&self) -> FileCount {
        self.0.fetch_add(1, Ordering::Relaxed);
        FileCount(Arc::clone(&self.0))
    }
}

/// One counted file.
#[derive(Debug)]
pub(super) struct FileCount(Arc<AtomicUsize>);

impl Drop for FileCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file that is open in one connection to the daemon. Dropping it closes it.
#[derive(Debug)]
pub(super) struct BackendFile {
    /// The connection's number.
    backend: u64,
    session: FuseSession,
    pub(super) node: Arc<Node>,
    pub(super) content: Content,
}

impl BackendFile {
    /// A file that the daemon has opened.
    pub(super) fn file(
        backend: &Backend,
        node: Arc<Node>,
        open: &OpenOut,
        count: &OpenCount,
    ) -> Self {
        let flags = FopenFlags::from_bits_retain(open.open_flags);
        let content = Content::File {
            fh: Handle::new(open.fh),
            flush: !flags.contains(FopenFlags::NOFLUSH),
            _counted: count.one(),
        };
        Self::with(backend, node, content)
    }

    /// Opens a node with `flags`.
    pub(super) fn open(
        backend: &Backend,
        found: &Found,
        flags: u32,
        count: &OpenCount,
    ) -> Result<Self> {
        if found.kind() == FileType::RegularFile {
            return Self::open_file(backend, Arc::clone(&found.node), flags, count);
        }
        Ok(Self::with(backend, Arc::clone(&found.node), Content::Other))
    }

    fn open_file(
        backend: &Backend,
        node: Arc<Node>,
        flags: u32,
        count: &OpenCount,
    ) -> Result<Self> {
        let args = OpenIn {
            flags,
            open_flags: 0,
        };
        let open = backend.session.open(node.id(), args)?;
        Ok(Self::file(backend, node, &open, count))
    }

    /// Opens the file again if it is parked.
    pub(super) fn reopen(
        &self,
        backend: &Backend,
        flags: u32,
        count: &OpenCount,
    ) -> Result<Option<Self>> {
        match self.content {
            Content::Parked => {
                Self::open_file(backend, Arc::clone(&self.node), flags, count).map(Some)
            }
            Content::File { .. } | Content::Other => Ok(None),
        }
    }

    /// Whether it is open and can be opened again, because it still has a name.
    pub(super) fn can_be_parked(&self, backend: &Backend) -> Result<bool> {
        let Content::File { fh, .. } = self.content else {
            return Ok(false);
        };
        Ok(backend.session.getattr(self.id(), Some(fh))?.attr.nlink != 0)
    }

    /// The same file, parked.
    pub(super) fn parked(&self, backend: &Backend) -> Self {
        Self::with(backend, Arc::clone(&self.node), Content::Parked)
    }

    fn with(backend: &Backend, node: Arc<Node>, content: Content) -> Self {
        Self {
            backend: backend.number,
            session: backend.session.clone(),
            node,
            content,
        }
    }

    /// Whether it belongs to this connection.
    pub(super) const fn is_of(&self, backend: &Backend) -> bool {
        self.backend == backend.number
    }

    /// Whether it is open at the daemon.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.content, Content::File { .. })
    }

    pub(super) const fn is_parked(&self) -> bool {
        matches!(self.content, Content::Parked)
    }

    /// The daemon's handle, for calls that take one.
    pub(super) const fn fh(&self) -> Option<Handle> {
        match self.content {
            Content::File { fh, .. } => Some(fh),
            Content::Parked | Content::Other => None,
        }
    }

    pub(super) fn id(&self) -> NodeId {
        self.node.id()
    }

    /// Reports the client's close to the daemon, which may then report a failed write.
    pub(super) fn flush(&self) -> Result<()> {
        let Content::File {
            fh, flush: true, ..
        } = self.content
        else {
            return Ok(());
        };
        let args = FlushIn {
            fh: fh.get(),
            ..FlushIn::default()
        };
        match self.session.flush(self.node.id(), args) {
            // The daemon does not implement FLUSH.
            Err(error) if error.errno() == Some(Errno::NOSYS) => Ok(()),
            flushed => Ok(flushed?),
        }
    }

    /// Syncs the file, or its data alone.
    ///
    /// # Errors
    ///
    /// EINVAL for a file that is not regular.
    pub(super) fn sync(&self, data_only: bool) -> Result<()> {
        let fh = self.fh().ok_or(Errno::INVAL)?;
        let args = FsyncIn {
            fh: fh.get(),
            fsync_flags: if data_only { DATA_ONLY } else { 0 },
            ..FsyncIn::default()
        };
        match self.session.fsync(self.id(), args) {
            // The daemon buffers no writes.
            Err(error) if error.errno() == Some(Errno::NOSYS) => Ok(()),
            synced => Ok(synced?),
        }
    }
}

impl Drop for BackendFile {
    fn drop(&mut self) {
        if let Content::File { fh, .. } = self.content {
            let args = ReleaseIn {
                fh: fh.get(),
                ..ReleaseIn::default()
            };
            // Nobody waits for the answer, and a daemon that is gone has closed the file.
            drop(self.session.submit(call::release(self.node.id(), args)));
        }
    }
}
