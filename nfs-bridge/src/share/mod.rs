//! The share as the procedures see it: inodes by handle, on a daemon that may stop and return.
//!
//! ```text
//!   Share ─> connector ─> connection   nodes and open files, until the daemon is lost
//!         ─> store                     where each inode is, for ever
//!         ─> listing                   directories by cookie
//! ```

pub mod connection;
pub mod connector;
pub mod error;
pub mod files;
pub mod handle;
mod handle_log;
pub mod listing;
mod place_table;
pub mod store;

use std::collections::HashSet;
use std::ffi::CString;
use std::sync::Arc;

use gangplank_fuse::Attr;
use nfs3_types::nfs3::nfsstat3;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::FileType;
use rustix::io::Errno;

use self::connection::{Connection, Node};
use self::connector::Connector;
use self::error::{Failure, Result};
use self::handle::FileHandle;
use self::listing::Listings;
use self::store::{Place, Store};
use crate::exports::{Export, Exports, Rule};
use crate::rpc::program::Caller;

/// Most directories above an inode.
const MAX_DEPTH: usize = 4096;

/// Locks of inodes. Two inodes may have the same one.
const LOCKS: u64 = 256;

/// Longest name, in bytes (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// The share.
#[derive(Debug)]
pub struct Share {
    connector: Connector,
    store: Store,
    exports: Exports,
    /// The listings of clients that read on.
    pub listings: Listings,
    locks: Vec<Mutex<()>>,
    verifier: Mutex<Verifier>,
    roots: Mutex<Roots>,
}

/// The inodes that exports begin with, on one connection.
#[derive(Debug, Default)]
struct Roots {
    /// The number of the connection.
    connection: u64,
    /// The inodes by the ids of their exports.
    nodes: Vec<(u32, Arc<Node>)>,
}

/// Tells clients whether data that they wrote without commitment may be lost.
///
/// Number and value change together: who sees the connection in here sees its value.
#[derive(Debug)]
struct Verifier {
    /// The number of the connection for which the value is valid; 0 before the first.
    connection: u64,
    value: u64,
}

impl Verifier {
    /// Notes that a request goes to a connection. A new one may lack what an earlier one was given.
    fn connected(&mut self, number: u64) {
        if self.connection != 0 && self.connection < number {
            self.renew();
        }
        self.connection = self.connection.max(number);
    }

    fn renew(&mut self) {
        self.value ^= getrandom::u64().unwrap_or(0).max(1);
    }
}

impl Share {
    /// A share whose daemon is connected by `connector`.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(
        connector: Connector,
        store: Store,
        exports: Exports,
    ) -> std::result::Result<Self, getrandom::Error> {
        Ok(Self {
            connector,
            store,
            exports,
            listings: Listings::default(),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            verifier: Mutex::new(Verifier {
                connection: 0,
                value: getrandom::u64()?,
            }),
            roots: Mutex::default(),
        })
    }

    /// The exports.
    #[must_use]
    pub const fn exports(&self) -> &Exports {
        &self.exports
    }

    /// The connected daemon.
    ///
    /// # Errors
    /// [`Failure::NoDaemon`].
    pub fn connection(&self) -> Result<Arc<Connection>> {
        let connection = self.connector.current()?;
        self.verifier.lock().connected(connection.number);
        Ok(connection)
    }

    /// Whether a daemon is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connector.is_connected()
    }

    /// Notes a failure that a procedure met.
    pub fn met(&self, connection: &Connection, failure: &Failure) {
        if failure.is_daemon_lost() {
            self.connector.lost(connection);
        }
    }

    /// The verifier of writes. It changes when this program starts, when the daemon was lost, and
    /// when the host could not write. A client that sees another one than before writes again what
    /// was not committed.
    #[must_use]
    pub fn write_verifier(&self) -> [u8; 8] {
        self.verifier.lock().value.to_be_bytes()
    }

    /// Makes clients write again what they have not committed.
    pub fn lose_writes(&self) {
        self.verifier.lock().renew();
    }

    /// The export of a handle, and what the client may do in it.
    ///
    /// # Errors
    /// `NFS3ERR_STALE` if it is not exported any more, `NFS3ERR_ACCES` if not to this client, and
    /// `NFS3ERR_PERM`, as Linux' server says, if not from this port.
    pub fn export(&self, handle: FileHandle, caller: Caller<'_>) -> Result<(&Export, &Rule)> {
        let export = self.exports.by_id(handle.export);
        let export = export.ok_or(nfsstat3::NFS3ERR_STALE)?;
        let rule = export.rule(caller.address);
        let rule = rule.ok_or(nfsstat3::NFS3ERR_ACCES)?;
        match rule.permits_port(caller.port) {
            true => Ok((export, rule)),
            false => Err(nfsstat3::NFS3ERR_PERM.into()),
        }
    }

    /// Locks an inode, so that attributes before and after a change differ by this change alone, as
    /// far as clients of this program cause it.
    pub fn lock(&self, handle: FileHandle) -> MutexGuard<'_, ()> {
        self.lock_number(lock_number(handle))
    }

    /// Locks two inodes.
    pub fn lock_both(
        &self,
        one: FileHandle,
        other: FileHandle,
    ) -> (MutexGuard<'_, ()>, Option<MutexGuard<'_, ()>>) {
        let (one, other) = (lock_number(one), lock_number(other));
        let first = self.lock_number(one.min(other));
        let second = (one != other).then(|| self.lock_number(one.max(other)));
        (first, second)
    }

    fn lock_number(&self, number: usize) -> MutexGuard<'_, ()> {
        // The number is below `LOCKS`.
        self.locks[number].lock()
    }

    /// The inode that an export begins with.
    ///
    /// # Errors
    /// The directory does not exist, or is none.
    pub fn root(&self, connection: &Connection, export: &Export) -> Result<Arc<Node>> {
        let mut roots = self.roots.lock();
        if roots.connection != connection.number {
            *roots = Roots {
                connection: connection.number,
                nodes: Vec::new(),
            };
        }
        if let Some((_, root)) = roots.nodes.iter().find(|(id, _)| *id == export.id) {
            return Ok(Arc::clone(root));
        }
        drop(roots);
        let mut node = connection.root(export.id)?;
        for name in &export.path {
            let name = component(name)?;
            node = connection.lookup(&node, &name)?.0;
        }
        let mut roots = self.roots.lock();
        if roots.connection == connection.number {
            roots.nodes.push((export.id, Arc::clone(&node)));
        }
        Ok(node)
    }

    /// Remembers where an inode is, before its handle is given out.
    pub fn remember(&self, node: &Node, parent: FileHandle, name: &[u8], attr: &Attr) {
        match may_have_links(attr) {
            true => self.store.add(node.handle, parent, name),
            false => self.store.put(node.handle, parent, name),
        }
    }

    /// Notes that an inode was moved.
    pub fn moved(&self, node: &Node, from: &Place, to: Place) {
        self.store.moved(node.handle, from, to);
    }

    /// Notes that an inode has lost a name. `attr` is of before. If it was the last, it is
    /// forgotten.
    pub fn unlinked(
        &self,
        connection: &Connection,
        node: &Node,
        attr: &Attr,
        parent: FileHandle,
        name: &[u8],
    ) {
        if may_have_links(attr) {
            self.store.unlinked(node.handle, parent, name);
        } else {
            self.store.remove(node.handle);
            connection.forget(node);
        }
    }

    /// The directory that an inode was last seen in; of an export's root it is the root itself.
    #[must_use]
    pub fn parent(&self, node: &Node) -> FileHandle {
        let places = self.store.places(node.handle);
        places.first().map_or(node.handle, |place| place.parent)
    }

    /// The node of a handle. Looks it up by its path if the daemon has forgotten it.
    ///
    /// # Errors
    /// `NFS3ERR_STALE` if it cannot be found, or is another inode by now.
    pub fn resolve(&self, connection: &Connection, handle: FileHandle) -> Result<Arc<Node>> {
        if let Some(node) = connection.known(handle) {
            self.store.touch(handle);
            return Ok(node);
        }
        let export = self.exports.by_id(handle.export);
        let root = self.root(connection, export.ok_or(nfsstat3::NFS3ERR_STALE)?)?;
        if handle == root.handle {
            return Ok(root);
        }
        for place in self.store.places(handle) {
            match self.resolve_at(connection, &root, handle, place) {
                // Another link may be there.
                Err(Failure::Refused(nfsstat3::NFS3ERR_STALE)) => {}
                done => return done,
            }
        }
        Err(nfsstat3::NFS3ERR_STALE.into())
    }

    /// The node of a handle whose inode was at `place`.
    fn resolve_at(
        &self,
        connection: &Connection,
        root: &Arc<Node>,
        handle: FileHandle,
        place: Place,
    ) -> Result<Arc<Node>> {
        // Up, until a directory is known.
        let mut seen = HashSet::from([handle]);
        let mut at = place.parent;
        let mut below = vec![(handle, place)];
        let mut node = loop {
            if at == root.handle {
                break Arc::clone(root);
            }
            if let Some(node) = connection.known(at) {
                break node;
            }
            // A directory has one place.
            let place = self.store.places(at).into_iter().next();
            let place = place.ok_or(nfsstat3::NFS3ERR_STALE)?;
            if below.len() > MAX_DEPTH || !seen.insert(at) {
                return Err(nfsstat3::NFS3ERR_STALE.into());
            }
            let parent = place.parent;
            below.push((at, place));
            at = parent;
        };
        // And down again.
        for (wanted, place) in below.into_iter().rev() {
            node = self.find_child(connection, &node, wanted, &place)?;
        }
        Ok(node)
    }

    /// The inode `wanted` in the directory `parent`, by the name that it had, or else by its
    /// number. If it is not there, its place stays: it may come back, as below a file system that
    /// the host has not mounted yet.
    fn find_child(
        &self,
        connection: &Connection,
        parent: &Node,
        wanted: FileHandle,
        place: &Place,
    ) -> Result<Arc<Node>> {
        let child = |name: &[u8]| match connection.lookup(parent, &component(name)?) {
            Ok((node, _)) if node.handle == wanted => Ok(Some(node)),
            Ok(_) => Ok(None),
            Err(failure) if is_absent(&failure) => Ok(None),
            Err(failure) => Err(failure),
        };
        if let Some(node) = child(&place.name)? {
            return Ok(node);
        }
        let attr = connection.attributes(parent)?;
        let entries = match self.listings.entries(parent, &attr, 0) {
            Err(failure) if is_absent(&failure) => return Err(nfsstat3::NFS3ERR_STALE.into()),
            entries => entries?,
        };
        for entry in entries.iter().filter(|entry| entry.ino == wanted.ino) {
            if let Some(node) = child(&entry.name)? {
                let found = Place {
                    parent: parent.handle,
                    name: entry.name.as_slice().into(),
                };
                self.store.moved(wanted, place, found);
                return Ok(node);
            }
        }
        // A client that finds it elsewhere has it remembered there.
        Err(nfsstat3::NFS3ERR_STALE.into())
    }
}

/// Whether an inode may have another link. Directories have none, whatever their number.
fn may_have_links(attr: &Attr) -> bool {
    attr.nlink > 1 && FileType::from_raw_mode(attr.mode) != FileType::Directory
}

fn is_absent(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(nfsstat3::NFS3ERR_NOENT))
        || [Errno::NOENT, Errno::NOTDIR, Errno::STALE]
            .iter()
            .any(|errno| failure.is(*errno))
}

fn lock_number(handle: FileHandle) -> usize {
    usize::try_from(handle.ino % LOCKS).unwrap_or(0)
}

/// A name as the daemon takes it: one component that is no "." or "..".
///
/// # Errors
/// `NFS3ERR_ACCES` for an empty name and names with a slash or a NUL byte, as other servers answer;
/// `NFS3ERR_INVAL` for "." and ".."; `NFS3ERR_NAMETOOLONG`.
pub fn component(name: &[u8]) -> std::result::Result<CString, nfsstat3> {
    if name.len() > MAX_NAME {
        return Err(nfsstat3::NFS3ERR_NAMETOOLONG);
    }
    if matches!(name, b"." | b"..") {
        return Err(nfsstat3::NFS3ERR_INVAL);
    }
    if name.is_empty() || name.contains(&b'/') {
        return Err(nfsstat3::NFS3ERR_ACCES);
    }
    CString::new(name).map_err(|_| nfsstat3::NFS3ERR_ACCES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_changes_with_each_new_connection_and_at_no_other_time() {
        let mut verifier = Verifier {
            connection: 0,
            value: 1,
        };
        verifier.connected(1);
        verifier.connected(1);
        assert_eq!(verifier.value, 1);
        verifier.connected(3);
        let second = verifier.value;
        assert_ne!(second, 1);
        // A request that began on a connection which is lost by now.
        verifier.connected(1);
        verifier.connected(3);
        assert_eq!(verifier.value, second);
        verifier.renew();
        assert_ne!(verifier.value, second);
    }
}
