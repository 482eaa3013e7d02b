//! The far tree as the kernel sees it: file operations by node and handle, done by calls that know names.
//!
//! One call is out at a time, since an endpoint asks one question at a time; so all of this is one value behind one lock, and
//! no name changes under way.
//!
//! - `attributes`: what files are, and changing it.
//! - `names`: making, moving and removing names.
//! - `data`: open files, and what is in them.
//! - `listing`: open directories, and what is in those.

mod arguments;
mod attributes;
mod data;
mod listing;
mod names;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;

use log::{debug, info, warn};
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

/// All that the kernel knows of the mount.
pub(crate) struct InodeOps {
    calls: Calls,
    owner: Owner,
    nodes: Nodes,
    files: Files,
    directories: Directories,
    /// How often the server had been lost when it was told that we are here.
    registered: Option<u64>,
    /// Whether it is known that the server cannot give files away.
    chown_refused: bool,
}

impl InodeOps {
    /// The tree that `calls` reach.
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

    /// Tells the server that we are here, unless it knows. It frees what an earlier client of our endpoint has left.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn register(&mut self) -> Result<()> {
        if self.registered == Some(self.calls.losses()) {
            return Ok(());
        }
        let losses = self.calls.losses();
        let path = self.calls.root_path()?;
        let root = self.calls.stat(Target::Path(b"/"))?;
        if root.mode & S_IFMT != S_IFDIR {
            warn!("the server's root is no directory (mode {:o})", root.mode);
            return Err(Errno::NOTDIR);
        }
        self.nodes.set_root(identity(&root));
        self.note(ROOT, &root);
        info!(
            "the server has {}",
            String::from_utf8_lossy(&path).escape_debug()
        );
        self.registered = Some(losses);
        Ok(())
    }

    /// The path of `node`, for a call.
    fn path(&mut self, node: u64) -> Result<Vec<u8>> {
        self.register()?;
        Ok(self.nodes.path(node)?)
    }

    /// The path of `name` in the directory `parent`, for a call.
    fn path_of(&mut self, parent: u64, name: &OsStr) -> Result<Vec<u8>> {
        self.register()?;
        Ok(self.nodes.path_of(parent, name)?)
    }

    /// Does `call` on the node, by path or, if it has none that leads to it any more, by the handle of an open file.
    fn on_node<T>(
        &mut self,
        node: u64,
        mut call: impl FnMut(&mut Calls, Target<'_>) -> std::result::Result<T, CallError>,
    ) -> Result<T> {
        match self.path(node) {
            Ok(path) => match call(&mut self.calls, Target::Path(&path)) {
                // Somebody else has removed or moved it, or a directory on the way. The kernel looks for it when told so, and
                // if it is found, its name is set right.
                Err(error) if error.is(Errno::NOENT) || error.is(Errno::NOTDIR) => {
                    debug!("node {node:#x} is gone from where it was");
                }
                done => return Ok(done?),
            },
            Err(Errno::STALE) => {}
            Err(error) => return Err(error),
        }
        let fh = self.files.of_node(node).ok_or(Errno::STALE)?;
        self.with_file(fh, |calls, handle| call(calls, Target::Handle(handle)))
    }

    /// The node that `name` in `parent` is, having the attributes `stat`; one that is known already if it is the same file.
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
                    // Held, so that losing its name does not end it.
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

    /// Whether a file with the attributes `stat`, found under a new name, is the known node `node`, whose inode number is the
    /// same. It is if both names lead to it, and if only the new one does any more.
    fn is_same(&mut self, node: u64, stat: &UsrStat) -> bool {
        let Ok(path) = self.nodes.path(node) else {
            // Without a name but open: as long as it is, the server gives its number to no other.
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

    /// Whether `node` is the file that has the attributes `stat`, as far as they tell.
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

/// What tells the file from others.
fn identity(stat: &UsrStat) -> FileIdentity {
    FileIdentity {
        ino: stat.ino,
        kind: stat.mode & S_IFMT,
    }
}

/// Whether two looks at what may be one file saw the same; looking may have changed its time of access, and only at open files the
/// mark is seen.
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
