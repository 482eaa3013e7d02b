//! The files that are open at the daemon.
//!
//! NFSv3 has no open and close. A file is opened when it is first read or written, and closed when
//! it was not used for a while. A file that is open for writing cannot be executed on the host, so
//! it is closed soon. Nobody waits until the daemon has closed a file, unless it matters.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gangplank_driver::{Pending, call};
use gangplank_fuse::{Handle, NodeId, OpenIn, ReleaseIn};
use parking_lot::Mutex;
use rustix::fs::OFlags;

use super::connection::Node;
use super::error::Result;

/// Most files that are open. The one that was used least recently is closed before another is
/// opened.
const MAX_FILES: usize = 512;

/// How long an unused file stays open.
const IDLE_TIME: Duration = Duration::from_secs(3);

/// Most files that the daemon is closing.
const MAX_CLOSING: usize = 64;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// For reading alone.
    Read,
    /// For writing alone.
    Write,
}

impl Access {
    fn flags(self) -> u32 {
        match self {
            Self::Read => OFlags::RDONLY.bits(),
            Self::Write => OFlags::WRONLY.bits(),
        }
    }
}

/// A file that is open at the daemon; closed when it is dropped.
#[derive(Debug)]
pub struct OpenFile {
    node: Arc<Node>,
    /// The daemon's number for it.
    pub handle: Handle,
    flags: u32,
    /// Whether dropping it waits until the daemon has closed it.
    waits: AtomicBool,
    closing: Arc<Closing>,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let args = ReleaseIn {
            fh: self.handle.get(),
            flags: self.flags,
            ..ReleaseIn::default()
        };
        let released = self.node.session.submit(call::release(self.node.id, args));
        // The daemon closes the file in any case; a lost one is reported by the next request.
        let Ok(released) = released else { return };
        if self.waits.load(Ordering::Relaxed) {
            let _ = released.wait();
        } else {
            self.closing.add(Arc::clone(&self.node), released);
        }
    }
}

/// Files that the daemon is closing. Their nodes are kept until it has.
#[derive(Debug, Default)]
struct Closing(Mutex<VecDeque<(Arc<Node>, Pending<()>)>>);

impl Closing {
    fn add(&self, node: Arc<Node>, released: Pending<()>) {
        let mut closing = self.0.lock();
        closing.push_back((node, released));
        let is_full = closing.len() > MAX_CLOSING;
        let oldest = is_full.then(|| closing.pop_front()).flatten();
        drop(closing);
        if let Some((_, released)) = oldest {
            let _ = released.wait();
        }
        self.drop_closed();
    }

    fn drop_closed(&self) {
        let is_closed = |(_, released): &mut (Arc<Node>, Pending<()>)| {
            // A daemon that is lost has closed everything.
            released.is_answered().unwrap_or(true)
        };
        let mut closing = self.0.lock();
        let mut closed = Vec::new();
        while let Some(next) = closing.pop_front_if(is_closed) {
            closed.push(next);
        }
        drop(closing);
        // Dropping the nodes may send a request.
        drop(closed);
    }
}

#[derive(Debug)]
struct Entry {
    file: Arc<OpenFile>,
    used: Instant,
}

/// The open files of a connection.
#[derive(Debug, Default)]
pub struct Files {
    open: Mutex<HashMap<(NodeId, Access), Entry>>,
    closing: Arc<Closing>,
}

impl Files {
    /// The file `node`, open for `access`. Opens it if it is not.
    ///
    /// # Errors
    /// The daemon's.
    pub fn open(&self, node: &Arc<Node>, access: Access) -> Result<Arc<OpenFile>> {
        if let Some(file) = self.find(node.id, access) {
            return Ok(file);
        }
        let flags = access.flags() | OFlags::NOFOLLOW.bits();
        let open_flags = 0;
        let opened = node.session.open(node.id, OpenIn { flags, open_flags })?;
        Ok(self.keep(node, access, Handle::new(opened.fh), flags))
    }

    /// The file `node` if it is open for `access`.
    #[must_use]
    pub fn find(&self, node: NodeId, access: Access) -> Option<Arc<OpenFile>> {
        let mut files = self.open.lock();
        let entry = files.get_mut(&(node, access))?;
        entry.used = Instant::now();
        Some(Arc::clone(&entry.file))
    }

    /// Keeps a file that was opened elsewhere.
    pub fn keep(
        &self,
        node: &Arc<Node>,
        access: Access,
        handle: Handle,
        flags: u32,
    ) -> Arc<OpenFile> {
        let file = Arc::new(OpenFile {
            node: Arc::clone(node),
            handle,
            flags,
            waits: AtomicBool::new(false),
            closing: Arc::clone(&self.closing),
        });
        let entry = Entry {
            file: Arc::clone(&file),
            used: Instant::now(),
        };
        let mut files = self.open.lock();
        let before = files.insert((node.id, access), entry);
        let oldest = match files.len() > MAX_FILES {
            true => {
                let oldest = files.iter().min_by_key(|(_, entry)| entry.used);
                let key = oldest.map(|(key, _)| *key);
                key.and_then(|key| files.remove(&key))
            }
            false => None,
        };
        // Closing sends a request.
        drop(files);
        drop((before, oldest));
        file
    }

    /// Closes a file that is not going to be used.
    pub fn close(&self, node: NodeId) {
        let mut files = self.open.lock();
        let closed = [Access::Read, Access::Write].map(|access| files.remove(&(node, access)));
        drop(files);
        drop(closed);
    }

    /// Closes what is open for writing. Waits until the daemon has closed it, so that the host can
    /// execute the file.
    pub fn close_written(&self, node: NodeId) {
        let closed = self.open.lock().remove(&(node, Access::Write));
        if let Some(closed) = closed {
            closed.file.waits.store(true, Ordering::Relaxed);
        }
    }

    /// Closes the files that were not used for a while.
    pub fn close_unused(&self) {
        let now = Instant::now();
        let mut files = self.open.lock();
        let closed: Vec<_> = files
            .extract_if(|_, entry| now.duration_since(entry.used) > IDLE_TIME)
            .collect();
        drop(files);
        drop(closed);
        self.closing.drop_closed();
    }
}
