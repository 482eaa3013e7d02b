//! A file as it is open with the daemon, in one connection to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gangplank_driver::{Session, call};
use gangplank_fuse::{FlushIn, FopenFlags, FsyncIn, Handle, NodeId, OpenIn, OpenOut, ReleaseIn};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::backend::Backend;
use super::failure::Result;
use super::resolver::{Found, Node};

/// FSYNC is about data alone (`FUSE_FSYNC_FDATASYNC`).
pub(super) const DATA_ONLY: u32 = 1;

/// What an open file is to the daemon.
#[derive(Debug)]
pub(super) enum Content {
    /// A regular file, open there.
    File {
        /// The daemon's handle.
        fh: Handle,
        /// Whether closing has to be told before it is done.
        flush: bool,
        /// Its place in its client's count.
        _counted: One,
    },
    /// A regular file that is opened again when it is used.
    Parked,
    /// Anything else: only its node counts.
    Other,
}

/// How many files of a client are open there.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenCount(Arc<AtomicUsize>);

impl OpenCount {
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn one(&self) -> One {
        self.0.fetch_add(1, Ordering::Relaxed);
        One(Arc::clone(&self.0))
    }
}

/// One file in a count.
#[derive(Debug)]
pub(super) struct One(Arc<AtomicUsize>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open file in one connection to the daemon; closed when dropped.
#[derive(Debug)]
pub(super) struct BackendFile {
    /// The connection's number.
    backend: u64,
    session: Session,
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

    /// What a node is when it is opened with `flags`.
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

    /// The same open once more, if it is parked.
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

    /// Whether it is open and can be opened again, since it still has a name.
    pub(super) fn can_be_parked(&self, backend: &Backend) -> Result<bool> {
        let Content::File { fh, .. } = self.content else {
            return Ok(false);
        };
        Ok(backend.session.getattr(self.id(), Some(fh))?.attr.nlink != 0)
    }

    /// The same parked.
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

    /// Whether it is of this connection.
    pub(super) const fn is_of(&self, backend: &Backend) -> bool {
        self.backend == backend.number
    }

    /// Whether the daemon has it open.
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

    /// Tells the daemon that the client closes: what could not be written may come to light.
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
            // A daemon that does not care.
            Err(error) if error.errno() == Some(Errno::NOSYS) => Ok(()),
            flushed => Ok(flushed?),
        }
    }

    /// Has the daemon put the file on stable storage, or its data alone.
    ///
    /// # Errors
    /// EINVAL for what is no regular file.
    pub(super) fn sync(&self, data_only: bool) -> Result<()> {
        let fh = self.fh().ok_or(Errno::INVAL)?;
        let args = FsyncIn {
            fh: fh.get(),
            fsync_flags: if data_only { DATA_ONLY } else { 0 },
            ..FsyncIn::default()
        };
        match self.session.fsync(self.id(), args) {
            // A daemon that writes nothing behind.
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
            // Nobody waits for it, and a daemon that has gone has closed it.
            drop(self.session.submit(call::release(self.node.id(), args)));
        }
    }
}
