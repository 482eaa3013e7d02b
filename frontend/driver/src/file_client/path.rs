//! Resolves paths to nodes, one component at a time and never out of the share.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::CString;
use std::rc::Rc;

use gangplank_fuse::{Attr, EntryOut, NodeId};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::error::{Error, Result};
use super::glob::Patterns;
use crate::FuseSession;

/// Most symbolic links in one path, as in Linux (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// A node of the share with one reference to it, returned when this is dropped.
#[derive(Debug)]
pub(super) struct Node {
    session: FuseSession,
    pub(super) id: NodeId,
    pub(super) attr: Attr,
}

impl Node {
    /// Takes over the reference that came with `entry`.
    pub(super) fn of(session: &FuseSession, entry: &EntryOut) -> Self {
        Self {
            session: session.clone(),
            id: NodeId::new(entry.nodeid),
            attr: entry.attr,
        }
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.attr.mode)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The next call that matters reports that the daemon is gone.
        let _ = self.session.forget(self.id, 1);
    }
}

/// Whether a path's last component is followed if it is a link and links are followed at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastLink {
    Follow,
    Keep,
}

/// A node of the share, and the name by which it was found.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) node: Rc<Node>,
    /// The directory and the name in it, after all links; None for the root.
    pub(super) place: Option<(Rc<Node>, CString)>,
}

/// The share, for the commands.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) session: FuseSession,
    pub(super) follow: bool,
    /// Which words are patterns.
    pub(super) patterns: RefCell<Patterns>,
    /// The directory in which a path begins that has no slash at its beginning.
    pub(super) directory: RefCell<Vec<u8>>,
}

impl Share {
    /// The share, beginning at its root.
    pub(super) const fn new(session: FuseSession, follow: bool) -> Self {
        Self {
            session,
            follow,
            patterns: RefCell::new(Patterns::All),
            directory: RefCell::new(Vec::new()),
        }
    }

    /// The node at `path`.
    pub(super) fn find(&self, path: &[u8], last: LastLink) -> Result<Rc<Node>> {
        Ok(self.locate(path, last)?.node)
    }

    /// The node at `path`, and where it is.
    pub(super) fn locate(&self, path: &[u8], last: LastLink) -> Result<Located> {
        let mut trail = self.trail(path, last)?;
        let Some((node, name)) = trail.pop() else {
            return Err(Error::Missing(text(path)));
        };
        let name = CString::new(name).map_err(|_| Error::Path {
            path: text(path),
            why: "a name cannot hold a NUL",
        })?;
        let place = trail.pop().map(|(parent, _)| (parent, name));
        Ok(Located { node, place })
    }

    /// The nodes that lead from the root to `path`, both included, each with its name in the one
    /// before.
    pub(super) fn trail(&self, path: &[u8], last: LastLink) -> Result<Vec<(Rc<Node>, Vec<u8>)>> {
        let mut ahead: VecDeque<Vec<u8>> = components(path).collect();
        if !path.starts_with(b"/") {
            for component in components(&self.directory.borrow())
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                ahead.push_front(component);
            }
        }
        let shown = text(path);
        let path = shown.as_str();
        let root = Rc::new(self.root()?);
        let mut trail = vec![(Rc::clone(&root), Vec::new())];
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            let here = trail.last().map_or(&root, |(node, _)| node);
            let here = Rc::clone(here);
            if here.kind() != FileType::Directory {
                return Err(Error::NotDirectory(path.to_owned()));
            }
            if name == b".." {
                // The parent of the root is the root.
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let child = self
                .child(&here, &name, path)?
                .ok_or_else(|| Error::Missing(path.to_owned()))?;
            let is_last = ahead.is_empty();
            if child.kind() != FileType::Symlink
                || (is_last && (last == LastLink::Keep || !self.follow))
            {
                trail.push((Rc::new(child), name));
                continue;
            }
            let target = self.target(&child, path)?;
            if !self.follow {
                return Err(Error::Link {
                    path: text(&name),
                    target: text(&target),
                });
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::Loop(path.to_owned()));
            }
            if target.starts_with(b"/") {
                trail.truncate(1);
            }
            for component in components(&target).collect::<Vec<_>>().into_iter().rev() {
                ahead.push_front(component);
            }
        }
        Ok(trail)
    }

    /// The parent directory of `path`, and the last name of `path`.
    pub(super) fn parent(&self, path: &[u8]) -> Result<(Rc<Node>, CString)> {
        let bad = |why| Error::Path {
            path: text(path),
            why,
        };
        let (before, name) = split(path);
        if matches!(name, b"" | b"." | b"..") {
            return Err(bad("the path ends in no name"));
        }
        let name = CString::new(name).map_err(|_| bad("a name cannot hold a NUL"))?;
        let parent = self.find(before, LastLink::Follow)?;
        if parent.kind() != FileType::Directory {
            return Err(Error::NotDirectory(text(before)));
        }
        Ok((parent, name))
    }

    /// The node of `name` in a directory, if the name exists. `path` is for messages.
    pub(super) fn child(&self, parent: &Node, name: &[u8], path: &str) -> Result<Option<Node>> {
        let name = CString::new(name).map_err(|_| Error::Path {
            path: path.to_owned(),
            why: "a name cannot hold a NUL",
        })?;
        match self.session.lookup(parent.id, &name) {
            // A daemon answers so to say how long the name does not exist.
            Ok(entry) if entry.nodeid == 0 => Ok(None),
            Ok(entry) => Ok(Some(Node::of(&self.session, &entry))),
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            Err(source) => Err(Error::Refused {
                what: "find",
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The target of a symbolic link.
    pub(super) fn target(&self, link: &Node, path: &str) -> Result<Vec<u8>> {
        let target = self.session.readlink(link.id);
        target.map_err(|source| Error::Refused {
            what: "read the link",
            path: path.to_owned(),
            source,
        })
    }

    fn root(&self) -> Result<Node> {
        let attr = self.session.getattr(NodeId::ROOT, None);
        let attr = attr.map_err(|source| Error::Refused {
            what: "look at",
            path: "/".to_owned(),
            source,
        })?;
        Ok(Node {
            session: self.session.clone(),
            id: NodeId::ROOT,
            attr: attr.attr,
        })
    }
}

/// Bytes as text for a terminal: control characters, and bytes that are no UTF-8, are escaped.
pub(super) fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.extend(byte.escape_ascii().map(char::from));
        }
    }
    text
}

/// A path's directory with its slash, or nothing if it has none, and its last name. Slashes at the
/// end do not count.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(0, |at| at + 1);
    let trimmed = &path[..end];
    if trimmed.is_empty() {
        return (path, b"");
    }
    let at = trimmed.iter().rposition(|byte| *byte == b'/');
    trimmed.split_at(at.map_or(0, |at| at + 1))
}

/// A path's last component, as a name.
pub(super) fn last_name(path: &[u8]) -> Result<CString> {
    let bad = |why| Error::Path {
        path: text(path),
        why,
    };
    match split(path).1 {
        b"" | b"." | b".." => Err(bad("the path ends in no name")),
        name => CString::new(name).map_err(|_| bad("a name cannot hold a NUL")),
    }
}

/// The path of `name` in the directory `directory`.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() && !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The names in a path, without "." and empty ones.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let names = path.split(|byte| *byte == b'/');
    names
        .filter(|name| !matches!(*name, b"" | b"."))
        .map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_fall_apart_into_names() {
        let names: Vec<_> = components(b"//a/./b/../c/").collect();
        assert_eq!(names, [&b"a"[..], b"b", b"..", b"c"]);
        assert_eq!(components(b"/").count(), 0);
    }

    #[test]
    fn last_name_of_a_path_is_split_off() {
        for (path, directory, name) in [
            ("a/b", "a/", "b"),
            ("a", "", "a"),
            ("/a//", "/", "a"),
            ("/", "/", ""),
            ("", "", ""),
        ] {
            let expected = (directory.as_bytes(), name.as_bytes());
            assert_eq!(split(path.as_bytes()), expected, "{path}");
        }
        assert_eq!(join(b"a", b"b"), b"a/b");
        assert_eq!(join(b"", b"b"), b"b");
        assert_eq!(join(b"/", b"b"), b"/b");
    }

    #[test]
    fn names_that_would_move_the_cursor_are_escaped() {
        assert_eq!(text(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(text(b"latin \xe4"), "latin \\xe4");
        assert_eq!(text("Gangplanke\u{301}".as_bytes()), "Gangplanke\u{301}");
    }
}
