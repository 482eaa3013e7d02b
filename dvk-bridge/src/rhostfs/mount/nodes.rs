//! The nodes that the kernel knows: the number of each file, and its names on the server.
//!
//! The server uses names, and the kernel uses numbers. A node's number is the server's 32-bit inode
//! number, so that programs see the same number for the life of a file. The server folds larger
//! numbers, so two known files may share one. The later file then gets a number above 32 bits.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// The root's node number.
pub(crate) const ROOT: u64 = 1;

/// Mask of a mode's kind of file.
pub(crate) const S_IFMT: u32 = 0o170_000;
/// Kind of a directory.
pub(crate) const S_IFDIR: u32 = 0o040_000;

/// Limit of a path with its NUL in bytes: the protocol's.
const PATH_MAX: usize = 4096;

/// The identity of a file, as far as the server reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    /// The server's inode number.
    pub(crate) ino: u32,
    /// The kind: the [`S_IFMT`] bits of the mode.
    pub(crate) kind: u32,
}

/// Why a node has no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathError {
    /// The kernel was never given this node.
    Unknown,
    /// Its last known name is gone.
    Unnamed,
    /// The path is longer than the protocol allows.
    TooLong,
}

/// A file that the kernel knows.
#[derive(Debug)]
struct Node {
    identity: FileIdentity,
    /// The mark that tells the file from a later one with the same identity. Zero until the file is
    /// opened.
    mark: u32,
    /// The last known permission bits.
    permissions: u32,
    /// The kernel's lookups of the node that it has not forgotten.
    lookups: u64,
    /// Number of open files and directories of the node.
    open: u64,
    /// The known names: directory and name. Hard links have several.
    names: Vec<(u64, OsString)>,
    /// The known nodes in the directory.
    children: BTreeMap<OsString, u64>,
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    /// Nodes by the server's inode number, without the root.
    by_ino: HashMap<u32, Vec<u64>>,
    /// The next number's upper half, for inode numbers in use.
    next_upper: u64,
}

impl Nodes {
    /// A table with the root only.
    pub(crate) fn new() -> Self {
        let root = Node {
            identity: FileIdentity {
                ino: 0,
                kind: S_IFDIR,
            },
            mark: 0,
            permissions: 0,
            lookups: 1,
            open: 0,
            names: Vec::new(),
            children: BTreeMap::new(),
        };
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            by_ino: HashMap::new(),
            next_upper: 1,
        }
    }

    /// The number of nodes with the root.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The path of `node` from the server's root: `/a/b`, without NUL.
    pub(crate) fn path(&self, node: u64) -> Result<Vec<u8>, PathError> {
        let mut parts: Vec<&OsStr> = Vec::new();
        let mut length = 1;
        let mut at = node;
        while at != ROOT {
            let (parent, name) = self
                .nodes
                .get(&at)
                .ok_or(PathError::Unknown)?
                .names
                .first()
                .ok_or(PathError::Unnamed)?;
            length += 1 + name.len();
            // The check also ends the walk if directories ever contain each other.
            if length > PATH_MAX {
                return Err(PathError::TooLong);
            }
            parts.push(name);
            at = *parent;
        }
        Ok(joined(parts.into_iter().rev()))
    }

    /// The path of `name` in the directory `parent`.
    pub(crate) fn path_of(&self, parent: u64, name: &OsStr) -> Result<Vec<u8>, PathError> {
        let mut path = self.path(parent)?;
        if path.last() != Some(&b'/') {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        if path.len() >= PATH_MAX {
            return Err(PathError::TooLong);
        }
        Ok(path)
    }

    /// The node of `name` in `parent` at the last lookup.
    pub(crate) fn child(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// The node's identity.
    pub(crate) fn identity(&self, node: u64) -> Option<FileIdentity> {
        Some(self.nodes.get(&node)?.identity)
    }

    /// Whether the node can be a file with this mark. An unknown mark matches any.
    pub(crate) fn may_match_mark(&self, node: u64, mark: u32) -> bool {
        let known = self.nodes.get(&node).map_or(0, |node| node.mark);
        known == 0 || mark == 0 || known == mark
    }

    /// Records the node's mark if `mark` is not zero.
    pub(crate) fn set_mark(&mut self, node: u64, mark: u32) {
        if let Some(node) = self.nodes.get_mut(&node).filter(|_| mark != 0) {
            node.mark = mark;
        }
    }

    /// Records the root's identity.
    pub(crate) fn set_root(&mut self, identity: FileIdentity) {
        if let Some(root) = self.nodes.get_mut(&ROOT) {
            root.identity = identity;
        }
    }

    /// Records the node's permission bits.
    pub(crate) fn set_permissions(&mut self, node: u64, permissions: u32) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.permissions = permissions;
        }
    }

    /// The node's last known permission bits.
    pub(crate) fn permissions(&self, node: u64) -> u32 {
        self.nodes.get(&node).map_or(0, |node| node.permissions)
    }

    /// Another node with this identity that has a name or is open. It is the same file, with a
    /// second name or moved by another client, or a file that the server cannot tell from it.
    pub(crate) fn candidate(&self, identity: FileIdentity, mark: u32) -> Option<u64> {
        self.by_ino
            .get(&identity.ino)?
            .iter()
            .copied()
            .find(|number| {
                self.nodes.get(number).is_some_and(|node| {
                    node.identity == identity && (node.open > 0 || !node.names.is_empty())
                }) && self.may_match_mark(*number, mark)
            })
    }

    /// Records that `name` in `parent` is `node` now, and not its previous node.
    pub(crate) fn bind(&mut self, parent: u64, name: &OsStr, node: u64) {
        match self.child(parent, name) {
            Some(known) if known == node => return,
            Some(_) => self.unbind(parent, name),
            None => {}
        }
        if !self.nodes.contains_key(&node) {
            return;
        }
        let Some(directory) = self.nodes.get_mut(&parent) else {
            return;
        };
        directory.children.insert(name.to_owned(), node);
        if let Some(node) = self.nodes.get_mut(&node) {
            node.names.push((parent, name.to_owned()));
        }
    }

    /// Records that `name` in `parent` is gone.
    pub(crate) fn unbind(&mut self, parent: u64, name: &OsStr) {
        let Some(directory) = self.nodes.get_mut(&parent) else {
            return;
        };
        let Some(child) = directory.children.remove(name) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(&child) {
            node.names
                .retain(|(at, known)| (*at, known.as_os_str()) != (parent, name));
        }
        self.release_unused(child);
        self.release_unused(parent);
    }

    /// Records that all names of the node are gone.
    pub(crate) fn unbind_all(&mut self, node: u64) {
        let names = self.nodes.get(&node).map(|node| node.names.clone());
        for (parent, name) in names.unwrap_or_default() {
            self.unbind(parent, &name);
        }
    }

    /// Records that the file no longer exists. No file found later is this node.
    pub(crate) fn end(&mut self, node: u64) {
        let ino = self.nodes.get(&node).map(|node| node.identity.ino);
        if let Some(same) = ino.and_then(|ino| self.by_ino.get_mut(&ino)) {
            same.retain(|other| *other != node);
        }
    }

    /// Creates a node without a name. The kernel knows it after [`Self::looked_up`].
    pub(crate) fn create(&mut self, identity: FileIdentity) -> u64 {
        let mut number = u64::from(identity.ino);
        // Number 0 is invalid, and 1 is the root's.
        if number <= ROOT || self.nodes.contains_key(&number) {
            number |= self.next_upper << 32;
            // A 32-bit counter that wraps meets numbers of nodes that were forgotten long before.
            // The loop skips those in use.
            while self.nodes.contains_key(&number) {
                self.next_upper = next_upper(self.next_upper);
                number = u64::from(identity.ino) | self.next_upper << 32;
            }
            self.next_upper = next_upper(self.next_upper);
        }
        self.by_ino.entry(identity.ino).or_default().push(number);
        self.nodes.insert(
            number,
            Node {
                identity,
                mark: 0,
                permissions: 0,
                lookups: 0,
                open: 0,
                names: Vec::new(),
                children: BTreeMap::new(),
            },
        );
        number
    }

    /// Records a lookup by the kernel.
    pub(crate) fn looked_up(&mut self, node: u64) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.lookups = node.lookups.saturating_add(1);
        }
    }

    /// Records that the kernel forgot `times` lookups of the node.
    pub(crate) fn forget(&mut self, node: u64, times: u64) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.lookups = known.lookups.saturating_sub(times);
        }
        self.release_unused(node);
    }

    /// Records an open of the node.
    pub(crate) fn opened(&mut self, node: u64) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.open = node.open.saturating_add(1);
        }
    }

    /// Records a close of the node.
    pub(crate) fn closed(&mut self, node: u64) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.open = known.open.saturating_sub(1);
        }
        self.release_unused(node);
    }

    /// Records a rename that the server has done. The node at the new name loses that name, or,
    /// with `exchange`, gets the old one.
    pub(crate) fn renamed(&mut self, old: (u64, &OsStr), new: (u64, &OsStr), exchange: bool) {
        let moved = self.child(old.0, old.1);
        let replaced = self.child(new.0, new.1);
        // A rename of a file's name to another of its names does nothing.
        if moved.is_some() && moved == replaced {
            return;
        }
        // The counts keep the nodes and their directories while a node on the path has no name.
        let held = [moved, replaced, Some(old.0), Some(new.0)];
        for node in held.into_iter().flatten() {
            self.opened(node);
        }
        self.unbind(old.0, old.1);
        self.unbind(new.0, new.1);
        if let Some(moved) = moved {
            self.bind(new.0, new.1, moved);
        }
        if let (true, Some(replaced)) = (exchange, replaced) {
            self.bind(old.0, old.1, replaced);
        }
        for node in held.into_iter().flatten() {
            self.closed(node);
        }
    }

    /// Removes `node` if it is unused, and then directories that only its path needed.
    fn release_unused(&mut self, node: u64) {
        let mut unsure = vec![node];
        while let Some(number) = unsure.pop() {
            let unused = number != ROOT
                && self.nodes.get(&number).is_some_and(|node| {
                    node.lookups == 0 && node.open == 0 && node.children.is_empty()
                });
            if !unused {
                continue;
            }
            let Some(node) = self.nodes.remove(&number) else {
                continue;
            };
            if let Some(same) = self.by_ino.get_mut(&node.identity.ino) {
                same.retain(|other| *other != number);
                if same.is_empty() {
                    self.by_ino.remove(&node.identity.ino);
                }
            }
            for (parent, name) in node.names {
                if let Some(directory) = self.nodes.get_mut(&parent) {
                    directory.children.remove(&name);
                }
                unsure.push(parent);
            }
        }
    }
}

/// The upper half after `upper`, in 1..2^32.
fn next_upper(upper: u64) -> u64 {
    if upper >= u64::from(u32::MAX) {
        1
    } else {
        upper + 1
    }
}

/// `/a/b` for `a` and `b`, and `/` for no parts.
fn joined<'a>(parts: impl Iterator<Item = &'a OsStr>) -> Vec<u8> {
    let mut path = Vec::new();
    for part in parts {
        path.push(b'/');
        path.extend_from_slice(part.as_bytes());
    }
    if path.is_empty() {
        path.push(b'/');
    }
    path
}

#[cfg(test)]
mod tests;
