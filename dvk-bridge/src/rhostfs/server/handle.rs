//! A client's open files, by numbers of its own.
//!
//! No number means anything to another client, or to the process. Two numbers may name the same open file (dup2); it is
//! closed with the last. A file that was open when the daemon went is opened again by its name, if that still names the same
//! inode; its client cannot do so, having bound the number to an inode of its own kernel.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gangplank_frontend::driver::{Session, call};
use gangplank_fuse::{Attr, FlushIn, FopenFlags, Handle, NodeId, OpenIn, OpenOut, ReleaseIn};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::failure::Result;
use super::link::Link;
use super::path::Path;
use super::tree::{Found, Last, Node};

/// Flags of open(2) that mean the same in every numbering.
pub(super) mod flag {
    /// Access mode (`O_ACCMODE`).
    pub(in super::super) const ACCESS: u32 = 3;
    pub(in super::super) const WRITE_ONLY: u32 = 1;
    pub(in super::super) const READ_WRITE: u32 = 2;
    pub(in super::super) const CREATE: u32 = 0x40;
    pub(in super::super) const EXCLUSIVE: u32 = 0x80;
    pub(in super::super) const TRUNCATE: u32 = 0x200;
    pub(in super::super) const APPEND: u32 = 0x400;
    /// On i386 (arch/x86 takes asm-generic/fcntl.h).
    pub(in super::super) const DIRECTORY: u32 = 0x1_0000;
}

/// What an open file is to the daemon.
#[derive(Debug)]
pub(super) enum Content {
    /// A regular file, open there.
    File {
        /// The daemon's handle.
        fh: Handle,
        /// Whether closing has to be told before it is done.
        flush: bool,
    },
    /// Anything else: only its node counts.
    Other,
}

/// An open file in one connection to the daemon; closed when dropped.
#[derive(Debug)]
pub(super) struct Opened {
    /// The connection's number.
    link: u64,
    session: Session,
    pub(super) node: Arc<Node>,
    pub(super) content: Content,
}

impl Opened {
    /// A file that the daemon has opened.
    pub(super) fn file(link: &Link, node: Arc<Node>, open: &OpenOut) -> Self {
        let flags = FopenFlags::from_bits_retain(open.open_flags);
        Self {
            link: link.number,
            session: link.session.clone(),
            node,
            content: Content::File {
                fh: Handle::new(open.fh),
                flush: !flags.contains(FopenFlags::NOFLUSH),
            },
        }
    }

    /// What need not be opened.
    pub(super) fn other(link: &Link, node: Arc<Node>) -> Self {
        Self {
            link: link.number,
            session: link.session.clone(),
            node,
            content: Content::Other,
        }
    }

    /// What a node is when it is opened with `flags`.
    pub(super) fn open(link: &Link, found: &Found, flags: u32) -> Result<Self> {
        if found.kind() != FileType::RegularFile {
            return Ok(Self::other(link, Arc::clone(&found.node)));
        }
        let args = OpenIn {
            flags,
            open_flags: 0,
        };
        let open = link.session.open(found.id(), args)?;
        Ok(Self::file(link, Arc::clone(&found.node), &open))
    }

    /// The daemon's handle, for calls that take one.
    pub(super) const fn fh(&self) -> Option<Handle> {
        match self.content {
            Content::File { fh, .. } => Some(fh),
            Content::Other => None,
        }
    }

    pub(super) fn id(&self) -> NodeId {
        self.node.id()
    }

    /// Tells the daemon that the client closes: what could not be written may come to light.
    fn flush(&self) -> Result<()> {
        let Content::File { fh, flush: true } = self.content else {
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
}

impl Drop for Opened {
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

/// An open file, whatever the connection.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// Flags that it is opened with again: access mode and `O_APPEND`.
    flags: u32,
    ino: u64,
    kind: FileType,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    path: Path,
    opened: Arc<Opened>,
}

impl OpenFile {
    /// What `opened` is, found at `path`.
    pub(super) fn new(path: Path, attr: &Attr, flags: u32, opened: Opened) -> Self {
        Self {
            flags: flags & (flag::ACCESS | flag::APPEND),
            ino: attr.ino,
            kind: FileType::from_raw_mode(attr.mode),
            state: Mutex::new(State {
                path,
                opened: Arc::new(opened),
            }),
        }
    }

    pub(super) const fn kind(&self) -> FileType {
        self.kind
    }

    pub(super) const fn reads(&self) -> bool {
        self.flags & flag::ACCESS != flag::WRITE_ONLY
    }

    pub(super) const fn writes(&self) -> bool {
        self.flags & flag::ACCESS != 0
    }

    pub(super) const fn appends(&self) -> bool {
        self.flags & flag::APPEND != 0
    }

    /// Flags of open(2), as far as they still count.
    pub(super) const fn flags(&self) -> u32 {
        self.flags
    }

    /// The file as it is open in `link`.
    ///
    /// # Errors
    /// ESTALE: it was open in another, and its name means something else now.
    pub(super) fn opened(&self, link: &Link) -> Result<Arc<Opened>> {
        let mut state = self.lock();
        if state.opened.link == link.number {
            return Ok(Arc::clone(&state.opened));
        }
        let found = match link.tree.find(&state.path, Last::Follow) {
            Err(failure) if failure.is(Errno::NOENT) || failure.is(Errno::NOTDIR) => {
                return Err(Errno::STALE.into());
            }
            found => found?,
        };
        if (found.attr.ino, found.kind()) != (self.ino, self.kind) {
            return Err(Errno::STALE.into());
        }
        let opened = Arc::new(Opened::open(link, &found, self.flags)?);
        state.opened = Arc::clone(&opened);
        Ok(opened)
    }

    /// What its name leads through was renamed.
    fn moved(&self, from: &Path, to: &Path) {
        let mut state = self.lock();
        if let Some(path) = state.path.moved(from, to) {
            state.path = path;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's numbers.
#[derive(Debug, Default)]
pub(super) struct Handles {
    files: Vec<Option<Arc<OpenFile>>>,
    /// Numbers in between that mean nothing, the lowest first.
    free: BinaryHeap<Reverse<usize>>,
}

impl Handles {
    /// Gives a file the lowest free number.
    ///
    /// # Errors
    /// EMFILE: `limit` files are open.
    pub(super) fn insert(&mut self, file: OpenFile, limit: usize) -> Result<i32> {
        let at = self.free.peek().map_or(self.files.len(), |free| free.0);
        let number = i32::try_from(at).map_err(|_| Errno::MFILE)?;
        if at >= limit {
            return Err(Errno::MFILE.into());
        }
        let file = Some(Arc::new(file));
        match self.files.get_mut(at) {
            Some(place) => {
                *place = file;
                self.free.pop();
            }
            None => self.files.push(file),
        }
        Ok(number)
    }

    /// The file of that number.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn get(&self, number: i32) -> Result<Arc<OpenFile>> {
        let file = usize::try_from(number)
            .ok()
            .and_then(|at| self.files.get(at));
        file.cloned().flatten().ok_or(Errno::BADF.into())
    }

    /// Makes `new` mean what `old` does; what it meant is closed if nothing else means it.
    ///
    /// # Errors
    /// EBADF: one of them means nothing.
    pub(super) fn duplicate(&mut self, old: i32, new: i32) -> Result<Arc<OpenFile>> {
        let file = self.get(old)?;
        self.replace(new, Some(file))
    }

    /// Frees a number: what it meant.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn remove(&mut self, number: i32) -> Result<Arc<OpenFile>> {
        let file = self.replace(number, None)?;
        self.free.extend(usize::try_from(number).map(Reverse));
        Ok(file)
    }

    fn replace(&mut self, number: i32, with: Option<Arc<OpenFile>>) -> Result<Arc<OpenFile>> {
        let place = usize::try_from(number).ok();
        let place = place.and_then(|at| self.files.get_mut(at));
        let place = place.filter(|place| place.is_some()).ok_or(Errno::BADF)?;
        let before = std::mem::replace(place, with);
        Ok(before.ok_or(Errno::BADF)?)
    }

    /// How many mean something.
    pub(super) fn count(&self) -> usize {
        self.files.len().saturating_sub(self.free.len())
    }

    /// Something was renamed.
    pub(super) fn moved(&self, from: &Path, to: &Path) {
        for file in self.files.iter().flatten() {
            file.moved(from, to);
        }
    }
}

/// Closes what a number meant, if nothing else means it: what the daemon has to say of it.
pub(super) fn close(file: Arc<OpenFile>, link: &Link) -> Result<()> {
    let Some(file) = Arc::into_inner(file) else {
        return Ok(());
    };
    let state = file.state.into_inner();
    let state = state.unwrap_or_else(PoisonError::into_inner);
    if state.opened.link == link.number {
        state.opened.flush()?;
    }
    Ok(())
}
