//! File operations of the mount by node and handle, made of the server's calls, which use names.
//!
//! One call runs at a time, because an endpoint sends one request at a time. All state is therefore
//! one value behind one lock, and no name changes during an operation.
//!
//! - `attributes`: lookup and attributes of files.
//! - `names`: creates, renames and removes names.
//! - `data`: open files and their data.
//! - `listing`: open directories and their entries.

mod arguments;
mod attributes;
mod data;
mod listing;
mod names;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;

use gangplank_service::rate_limited;
use log::debug;
use rustix::io::Errno;

use super::call_error::CallError;
use super::calls::{Calls, Target};
use super::directories::Directories;
use super::files::Files;
use super::nodes::{FileIdentity, Nodes, PathError, ROOT, S_IFDIR, S_IFMT};
use crate::abi::rhostfs::UsrStat;

pub use arguments::Owner;
pub(crate) use arguments::{Changes, Creator, Extent};

type Result<T> = std::result::Result<T, Errno>;

/// The state behind all nodes and handles that the kernel knows.
pub(crate) struct InodeOps {
    calls: Calls,
    owner: Owner,
    nodes: Nodes,
    files: Files,
    directories: Directories,
    /// The count of losses when this client last registered.
    registered: Option<u64>,
    /// Whether the server is known to be unable to change owners.
    chown_refused: bool,
}

impl InodeOps {
    /// Operations on the tree that `calls` reach.
    pub(crate) fn new(calls: Calls, owner: Owner) -> Self {
        Self {
            calls,
            owner,
            nodes: Nodes::new(),
            files: Files::default(),
            directories: Directories::default(),
            registered: None,
            chown_refused: false,
        }
    }

    /// Registers this client at the server unless that is done. The server frees what an earlier
    /// client of the endpoint left.
    ///
    /// # Errors
    ///
    /// [`CallError`] of the registration.
    pub(crate) fn register(&mut self) -> Result<()> {
        if self.registered == Some(self.calls.losses()) {
            return Ok(());
        }
        let losses = self.calls.losses();
        let path = self.calls.root_path()?;
        let root = self.calls.stat(Target::Path(b"/"))?;
        if root.mode & S_IFMT != S_IFDIR {
            rate_limited!(
                warn,
                "the server's root is not a directory (mode {:o})",
                root.mode
            );
            return Err(Errno::NOTDIR);
        }
        self.nodes.set_root(identity(&root));
        self.note(ROOT, &root);
        rate_limited!(
            info,
            "the server has {}",
            String::from_utf8_lossy(&path).escape_debug()
        );
        self.registered = Some(losses);
        Ok(())
    }

    /// The path of `node` for a call.
    fn path(&mut self, node: u64) -> Result<Vec<u8>> {
        self.register()?;
        Ok(self.nodes.path(node)?)
    }

    /// The path of `name` in the directory `parent` for a call.
    fn path_of(&mut self, parent: u64, name: &OsStr) -> Result<Vec<u8>> {
        self.register()?;
        Ok(self.nodes.path_of(parent, name)?)
    }

    /// Runs `call` on the node by path, or, if no path leads to it, by the handle of an open file.
    fn on_node<T>(
        &mut self,
        node: u64,
        mut call: impl FnMut(&mut Calls, Target<'_>) -> std::result::Result<T, CallError>,
    ) -> Result<T> {
        match self.path(node) {
            Ok(path) => match call(&mut self.calls, Target::Path(&path)) {
                // Another client removed or moved the file, or a directory of its path. After this
                // error the kernel looks it up again, and a success corrects the name.
                Err(error) if error.is(Errno::NOENT) || error.is(Errno::NOTDIR) => {
                    debug!("the name of node {node:#x} is gone");
                }
                done => return Ok(done?),
            },
            Err(Errno::STALE) => {}
            Err(error) => return Err(error),
        }
        let fh = self.files.of_node(node).ok_or(Errno::STALE)?;
        self.with_file(fh, |calls, handle| call(calls, Target::Handle(handle)))
    }

    /// The node of `name` in `parent` with the attributes `stat`. A known node is returned if it is
    /// the same file.
    fn adopt(&mut self, parent: u64, name: &OsStr, stat: &UsrStat) -> u64 {
        let identity = identity(stat);
        let known = self
            .nodes
            .child(parent, name)
            .filter(|known| self.is(*known, stat));
        let node = match known {
            Some(known) => known,
            None => match self.nodes.candidate(identity, stat.dev) {
                Some(candidate) => {
                    // The count keeps the node when it loses its name.
                    self.nodes.opened(candidate);
                    let node = if self.is_same(candidate, stat) {
                        candidate
                    } else {
                        self.nodes.create(identity)
                    };
                    self.nodes.bind(parent, name, node);
                    self.nodes.closed(candidate);
                    node
                }
                None => {
                    let node = self.nodes.create(identity);
                    self.nodes.bind(parent, name, node);
                    node
                }
            },
        };
        self.note(node, stat);
        node
    }

    /// Whether the file with the attributes `stat`, found under a new name, is the known node
    /// `node` with the same inode number. It is if both names lead to it, or if only the new one
    /// still does.
    fn is_same(&mut self, node: u64, stat: &UsrStat) -> bool {
        let Ok(path) = self.nodes.path(node) else {
            // The file has no name but is open, and the server does not reuse its inode number
            // while it is.
            return true;
        };
        match self.calls.stat(Target::Path(&path)) {
            Ok(other) if identity(&other) == identity(stat) => {
                stat.mode & S_IFMT != S_IFDIR && other.nlink > 1 && same_but_for_atime(&other, stat)
            }
            Ok(_) => {
                self.nodes.unbind_all(node);
                true
            }
            Err(error) if error.is(Errno::NOENT) || error.is(Errno::NOTDIR) => {
                self.nodes.unbind_all(node);
                true
            }
            Err(_) => false,
        }
    }

    /// Whether `node` may be the file with the attributes `stat`.
    fn is(&self, node: u64, stat: &UsrStat) -> bool {
        self.nodes.identity(node) == Some(identity(stat))
            && self.nodes.may_match_mark(node, stat.dev)
    }

    fn note(&mut self, node: u64, stat: &UsrStat) {
        self.nodes.set_permissions(node, stat.mode & 0o7777);
        self.nodes.set_mark(node, stat.dev);
        self.files.note_size(node, stat.whole_size());
    }
}

/// The identity of a file with these attributes.
fn identity(stat: &UsrStat) -> FileIdentity {
    FileIdentity {
        ino: stat.ino,
        kind: stat.mode & S_IFMT,
    }
}

/// Whether two results of `stat` are equal except for the time of access and the mark. A lookup may
/// change that time, and only open files show the mark.
fn same_but_for_atime(one: &UsrStat, other: &UsrStat) -> bool {
    UsrStat {
        atime: other.atime,
        dev: other.dev,
        ..*one
    } == *other
}

impl From<CallError> for Errno {
    fn from(error: CallError) -> Self {
        error.errno()
    }
}

impl From<PathError> for Errno {
    fn from(error: PathError) -> Self {
        match error {
            PathError::Unknown | PathError::Unnamed => Self::STALE,
            PathError::TooLong => Self::NAMETOOLONG,
        }
    }
}
