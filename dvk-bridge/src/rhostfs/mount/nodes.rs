//! What the kernel knows of the far tree: a number for each file, and the names under which the server has it.
//!
//! The server knows names alone, the kernel numbers. A number is the server's own 32-bit inode number, so that programs
//! see the same one for as long as the file lives; where two files that are known at once have the same (the server
//! folds larger ones), the later gets a number above 32 bits.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// The root's number on the kernel's side.
pub(crate) const ROOT: u64 = 1;

/// The bits of a mode that tell the kind of file.
pub(crate) const S_IFMT: u32 = 0o170_000;
/// Those of a directory.
pub(crate) const S_IFDIR: u32 = 0o040_000;

/// Longest path with its NUL that the protocol carries.
const PATH_MAX: usize = 4096;

/// What tells a file from others, as far as the server tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    /// The server's inode number.
    pub(crate) ino: u32,
    /// Its kind, the [`S_IFMT`] bits of its mode.
    pub(crate) kind: u32,
}

/// Why a node has no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathError {
    /// The kernel named a node that it was never told of.
    Unknown,
    /// Its last known name is gone.
    Unnamed,
    /// Longer than the protocol carries.
    TooLong,
}

/// A file that the kernel knows.
#[derive(Debug)]
struct Node {
    identity: FileIdentity,
    /// What tells it from a later file with its identity, once it was open; zero if that is not known.
    mark: u32,
    /// Its permission bits when last seen.
    permissions: u32,
    /// How often the kernel was told of it and has not forgotten.
    lookups: u64,
    /// Open files and directories of it.
    open: u64,
    /// Where it is, as far as is known: directory and name. More than one for hard links.
    names: Vec<(u64, OsString)>,
    /// What is known below it.
    children: BTreeMap<OsString, u64>,
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    /// Nodes of each of the server's inode numbers, the root's excepted.
    by_ino: HashMap<u32, Vec<u64>>,
    /// The next number's upper half, for inode numbers that are taken.
    next_upper: u64,
}

impl Nodes {
    /// The root and nothing else.
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

    /// How many there are, the root included.
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
            // Also ends the walk should directories ever contain each other.
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

    /// The node that `name` in `parent` was when last looked up.
    pub(crate) fn child(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// What the node is.
    pub(crate) fn identity(&self, node: u64) -> Option<FileIdentity> {
        Some(self.nodes.get(&node)?.identity)
    }

    /// Whether the node can be a file with this mark. Where one of the two is not known, it can.
    pub(crate) fn may_match_mark(&self, node: u64, mark: u32) -> bool {
        let known = self.nodes.get(&node).map_or(0, |node| node.mark);
        known == 0 || mark == 0 || known == mark
    }

    /// Notes the node's mark, if it is one.
    pub(crate) fn set_mark(&mut self, node: u64, mark: u32) {
        if let Some(node) = self.nodes.get_mut(&node).filter(|_| mark != 0) {
            node.mark = mark;
        }
    }

    /// Notes what the root is on the server.
    pub(crate) fn set_root(&mut self, identity: FileIdentity) {
        if let Some(root) = self.nodes.get_mut(&ROOT) {
            root.identity = identity;
        }
    }

    /// Notes the node's permission bits.
    pub(crate) fn set_permissions(&mut self, node: u64, permissions: u32) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.permissions = permissions;
        }
    }

    /// The node's permission bits when last seen.
    pub(crate) fn permissions(&self, node: u64) -> u32 {
        self.nodes.get(&node).map_or(0, |node| node.permissions)
    }

    /// Another node with this identity that has a name or is open: either the same file, by a second name or after it was
    /// moved by somebody else, or one that the server cannot tell from it.
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

    /// Notes that `name` in `parent` is `node` now, and no longer what it was.
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

    /// Notes that `name` in `parent` is gone.
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

    /// Notes that the node is under none of its names any more.
    pub(crate) fn unbind_all(&mut self, node: u64) {
        let names = self.nodes.get(&node).map(|node| node.names.clone());
        for (parent, name) in names.unwrap_or_default() {
            self.unbind(parent, &name);
        }
    }

    /// Notes that the file is no more: none that is found is the node.
    pub(crate) fn end(&mut self, node: u64) {
        let ino = self.nodes.get(&node).map(|node| node.identity.ino);
        if let Some(same) = ino.and_then(|ino| self.by_ino.get_mut(&ino)) {
            same.retain(|other| *other != node);
        }
    }

    /// A new node without a name, known to the kernel once [`Self::looked_up`] says so.
    pub(crate) fn create(&mut self, identity: FileIdentity) -> u64 {
        let mut number = u64::from(identity.ino);
        // Numbers 0 and 1 are nobody's and the root's.
        if number <= ROOT || self.nodes.contains_key(&number) {
            number |= self.next_upper << 32;
            // A 32-bit counter that starts again meets nodes that are long forgotten; the loop makes sure.
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

    /// Notes that the kernel was told of the node once more.
    pub(crate) fn looked_up(&mut self, node: u64) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.lookups = node.lookups.saturating_add(1);
        }
    }

    /// Notes that the kernel has forgotten the node `times` times.
    pub(crate) fn forget(&mut self, node: u64, times: u64) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.lookups = known.lookups.saturating_sub(times);
        }
        self.release_unused(node);
    }

    /// Notes that the node was opened once more.
    pub(crate) fn opened(&mut self, node: u64) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.open = node.open.saturating_add(1);
        }
    }

    /// Notes that one of its open files was closed.
    pub(crate) fn closed(&mut self, node: u64) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.open = known.open.saturating_sub(1);
        }
        self.release_unused(node);
    }

    /// Notes a rename that the server has done; what was at the new name is gone, or, with `exchange`, at the old.
    pub(crate) fn renamed(&mut self, old: (u64, &OsStr), new: (u64, &OsStr), exchange: bool) {
        let moved = self.child(old.0, old.1);
        let replaced = self.child(new.0, new.1);
        // Renaming one of a file's names to another of them does nothing.
        if moved.is_some() && moved == replaced {
            return;
        }
        // Neither may vanish for want of a name on the way, nor the directories that they are known in.
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

    /// Lets go of `node` if nobody needs it, and then of directories that were needed for its path alone.
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

/// `/a/b` of `a` and `b`; `/` of nothing.
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
