//! One connection to the daemon: its session, the nodes that are known in it, and its open files.
//!
//! All of this ends with the connection. What survives is in [`super::store`].

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gangplank_driver::{FuseSession, Pending, call};
use gangplank_fuse::{Attr, AttrOut, EntryOut, NodeId, StatxIn, StatxOut};
use parking_lot::Mutex;
use rustix::io::Errno;

use super::error::Result;
use super::files::Files;
use super::handle::FileHandle;

/// The bit of a statx for the time of birth (`STATX_BTIME`).
const STATX_BTIME: u32 = 0x800;

/// Nodes that are kept known. Beyond it the quarter that was used least recently is given back to
/// the daemon, which holds a descriptor for each.
const MAX_NODES: usize = 32 << 10;

/// A connection to the daemon.
#[derive(Debug)]
pub struct Connection {
    /// The number of the connection, from 1.
    pub number: u64,
    /// The session.
    pub session: FuseSession,
    /// The open files.
    pub files: Files,
    nodes: Mutex<Nodes>,
    /// Whether the daemon tells times of birth.
    tells_birth: AtomicBool,
}

#[derive(Debug, Default)]
struct Nodes {
    by_handle: HashMap<FileHandle, Arc<Node>>,
    by_id: HashMap<(u32, NodeId), Arc<Node>>,
    clock: u64,
}

/// A node of the share with one reference, which is given back when it is dropped.
#[derive(Debug)]
pub struct Node {
    /// The session, on this node's queue. A call that began at a directory stays on that one's.
    pub session: FuseSession,
    /// The daemon's number for it.
    pub id: NodeId,
    /// The client's name for it.
    pub handle: FileHandle,
    /// When it was used last, by the clock of [`Nodes`].
    used: AtomicU64,
}

impl Drop for Node {
    fn drop(&mut self) {
        // A lost daemon is reported by the next request.
        let _ = self.session.forget(self.id, 1);
    }
}

impl Connection {
    /// A connection on which nothing is known yet.
    #[must_use]
    pub fn new(number: u64, session: FuseSession) -> Self {
        Self {
            number,
            session,
            files: Files::default(),
            nodes: Mutex::default(),
            tells_birth: AtomicBool::new(true),
        }
    }

    /// The attributes of a node.
    ///
    /// # Errors
    /// The daemon's.
    pub fn attributes(&self, node: &Node) -> Result<Attr> {
        Ok(self.ask_attributes(node)?.wait()?.attr)
    }

    /// Asks for the attributes of a node, without waiting for them.
    ///
    /// # Errors
    /// The request cannot be sent.
    pub fn ask_attributes(&self, node: &Node) -> Result<Pending<AttrOut>> {
        Ok(node.session.submit(call::getattr(node.id, None))?)
    }

    /// The node of a handle, if it is known.
    #[must_use]
    pub fn known(&self, handle: FileHandle) -> Option<Arc<Node>> {
        self.nodes.lock().find(handle)
    }

    /// Looks a name up in a directory.
    ///
    /// # Errors
    /// The daemon's; ENOENT if there is no such name.
    pub fn lookup(&self, parent: &Node, name: &CStr) -> Result<(Arc<Node>, Attr)> {
        self.found(parent, self.ask_lookup(parent, name)?)
    }

    /// Asks for a name in a directory, without waiting. What comes of it goes to [`Self::found`].
    ///
    /// # Errors
    /// The request cannot be sent.
    pub fn ask_lookup(&self, parent: &Node, name: &CStr) -> Result<Pending<EntryOut>> {
        Ok(parent.session.submit(call::lookup(parent.id, name))?)
    }

    /// What [`Self::ask_lookup`] has found in the directory `parent`.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn found(&self, parent: &Node, asked: Pending<EntryOut>) -> Result<(Arc<Node>, Attr)> {
        self.entry(&parent.session, parent.handle.export, asked.wait()?)
    }

    /// Gives back what a name that was asked for may have brought.
    pub fn give_back(&self, asked: Pending<EntryOut>) {
        if let Ok(entry) = asked.wait() {
            let _ = self.session.forget(NodeId::new(entry.nodeid), 1);
        }
    }

    /// The node of an entry that the daemon has replied. Takes over its reference. What has to be
    /// asked about it goes through `session`: a caller that waits for more has one queue to watch.
    ///
    /// # Errors
    /// The daemon's; ENOENT if the entry says so.
    pub fn entry(
        &self,
        session: &FuseSession,
        export: u32,
        entry: EntryOut,
    ) -> Result<(Arc<Node>, Attr)> {
        let id = NodeId::new(entry.nodeid);
        if entry.nodeid == 0 {
            return Err(nfs3_types::nfs3::nfsstat3::NFS3ERR_NOENT.into());
        }
        let known = self.nodes.lock().find_id(export, id);
        if let Some(known) = known {
            // The known node has a reference already, and is held from here on.
            let _ = self.session.forget(id, 1);
            return Ok((known, entry.attr));
        }
        let birth = self.birth(session, id).inspect_err(|_| {
            let _ = self.session.forget(id, 1);
        })?;
        let handle = FileHandle {
            export,
            ino: entry.attr.ino,
            birth,
        };
        let session = self.session_of(id).inspect_err(|_| {
            let _ = self.session.forget(id, 1);
        })?;
        let mut nodes = self.nodes.lock();
        // Another thread may have looked it up meanwhile.
        if let Some(known) = nodes.find_id(export, id) {
            drop(nodes);
            let _ = self.session.forget(id, 1);
            return Ok((known, entry.attr));
        }
        let (node, dropped) = nodes.insert(session, id, handle);
        drop(nodes);
        drop(dropped);
        Ok((node, entry.attr))
    }

    /// When an inode was born, in nanoseconds; 0 if the share does not tell. A failure must not be
    /// taken for that: the inode would get a second handle, and the first would be stale.
    fn birth(&self, session: &FuseSession, id: NodeId) -> Result<u64> {
        if !self.tells_birth.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let told = session.submit(call::statx(id, BIRTH));
        match told.and_then(Pending::wait) {
            Ok(told) if told.stat.mask & STATX_BTIME != 0 => Ok(nanoseconds(&told)),
            Ok(_) => Ok(0),
            Err(error) if error.errno() == Some(Errno::NOSYS) => {
                self.tells_birth.store(false, Ordering::Relaxed);
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The session on the queue of a node. Nodes are spread over the queues.
    fn session_of(&self, id: NodeId) -> Result<FuseSession> {
        let queues = u64::try_from(self.session.request_queues()).unwrap_or(1);
        let queue = usize::try_from(id.get() % queues.max(1)).unwrap_or(0) + 1;
        Ok(self.session.on_queue(queue)?)
    }

    /// The root of the share as an inode of `export`.
    ///
    /// # Errors
    /// The daemon's.
    pub fn root(&self, export: u32) -> Result<Arc<Node>> {
        let attr = self.session.getattr(NodeId::ROOT, None)?.attr;
        let entry = EntryOut {
            nodeid: NodeId::ROOT.get(),
            attr,
            ..EntryOut::default()
        };
        Ok(self.entry(&self.session, export, entry)?.0)
    }

    /// Forgets a node whose inode was removed.
    pub fn forget(&self, node: &Node) {
        self.files.close(node.id);
        let mut nodes = self.nodes.lock();
        let dropped = (
            nodes.by_handle.remove(&node.handle),
            nodes.by_id.remove(&(node.handle.export, node.id)),
        );
        drop(nodes);
        drop(dropped);
    }
}

const BIRTH: StatxIn = StatxIn {
    getattr_flags: 0,
    reserved: 0,
    fh: 0,
    sx_flags: 0,
    sx_mask: STATX_BTIME,
};

fn nanoseconds(told: &StatxOut) -> u64 {
    let birth = told.stat.btime;
    let seconds = birth.tv_sec.cast_unsigned();
    seconds
        .wrapping_mul(1_000_000_000)
        .wrapping_add(birth.tv_nsec.into())
}

impl Nodes {
    fn find(&mut self, handle: FileHandle) -> Option<Arc<Node>> {
        self.clock += 1;
        let node = self.by_handle.get(&handle)?;
        node.used.store(self.clock, Ordering::Relaxed);
        Some(Arc::clone(node))
    }

    fn find_id(&mut self, export: u32, id: NodeId) -> Option<Arc<Node>> {
        let handle = self.by_id.get(&(export, id))?.handle;
        self.find(handle)
    }

    /// Adds a node. Returns it, and those that it displaces.
    fn insert(
        &mut self,
        session: FuseSession,
        id: NodeId,
        handle: FileHandle,
    ) -> (Arc<Node>, Vec<Arc<Node>>) {
        self.clock += 1;
        let node = Arc::new(Node {
            session,
            id,
            handle,
            used: AtomicU64::new(self.clock),
        });
        let mut dropped = Vec::new();
        if let Some(before) = self.by_handle.insert(handle, Arc::clone(&node)) {
            self.by_id.remove(&(handle.export, before.id));
            dropped.push(before);
        }
        dropped.extend(self.by_id.insert((handle.export, id), Arc::clone(&node)));
        if self.by_handle.len() > MAX_NODES {
            dropped.extend(self.evict());
        }
        (node, dropped)
    }

    /// Takes out the quarter that was used least recently.
    fn evict(&mut self) -> Vec<Arc<Node>> {
        let used = |node: &Arc<Node>| node.used.load(Ordering::Relaxed);
        let mut all: Vec<_> = self.by_handle.values().cloned().collect();
        let count = all.len() / 4;
        all.select_nth_unstable_by_key(count, used);
        all.truncate(count);
        for node in &all {
            self.by_handle.remove(&node.handle);
            self.by_id.remove(&(node.handle.export, node.id));
        }
        all
    }
}
