//! `mkdir`, `rm`, `mv`, `ln`: changes of the directory tree.

use std::ffi::CString;
use std::rc::Rc;

use gangplank_fuse::MkdirIn;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::error::{Error, Failures, Result};
use super::listing::MAX_DEPTH;
use super::path::{LastLink, Node, Share, components, join, last_name, text};
use crate as driver;

impl Share {
    /// Makes a directory, and its missing parents with `parents`.
    pub(super) fn make(&self, path: &[u8], parents: bool) -> Result<()> {
        if !parents {
            return self.mkdir(path).map_err(refused("make", path));
        }
        let mut so_far = match path.starts_with(b"/") {
            true => b"/".to_vec(),
            false => Vec::new(),
        };
        for name in components(path) {
            so_far = join(&so_far, &name);
            match self.find(&so_far, LastLink::Follow) {
                Ok(node) if node.kind() == FileType::Directory => {}
                Ok(_) => return Err(Error::NotDirectory(text(&so_far))),
                Err(Error::Missing(_)) => match self.mkdir(&so_far) {
                    // Another program has made something of that name meanwhile.
                    Err(MkdirError::Refused(error)) if error.errno() == Some(Errno::EXIST) => {
                        let node = self.find(&so_far, LastLink::Follow)?;
                        if node.kind() != FileType::Directory {
                            return Err(Error::NotDirectory(text(&so_far)));
                        }
                    }
                    made => made.map_err(refused("make", &so_far))?,
                },
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn mkdir(&self, path: &[u8]) -> std::result::Result<(), MkdirError> {
        let (parent, name) = self.parent(path).map_err(MkdirError::Path)?;
        let mode = MkdirIn {
            mode: 0o755,
            umask: 0,
        };
        let entry = self.session.mkdir(parent.id, &name, mode);
        let entry = entry.map_err(MkdirError::Refused)?;
        drop(Node::of(&self.session, &entry));
        Ok(())
    }

    /// Removes a file, or a directory with everything below it with `recursive`. Goes on with the
    /// rest of a directory after an error.
    pub(super) fn remove(&self, path: &[u8], recursive: bool) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let shown = text(path);
        let path = shown.as_str();
        let node = self
            .child(&parent, name.as_bytes(), path)?
            .ok_or_else(|| Error::Missing(path.to_owned()))?;
        if node.kind() != FileType::Directory {
            return self.remove_name(&parent, &name, &node, path);
        }
        if !recursive {
            return Err(Error::Directory(path.to_owned()));
        }
        self.remove_node(&parent, &name, &node, path)
    }

    /// Removes what has the name, with everything below it. Goes on with the rest of a directory
    /// after an error.
    pub(super) fn remove_node(
        &self,
        parent: &Node,
        name: &CString,
        node: &Node,
        path: &str,
    ) -> Result<()> {
        let mut failures = Failures::default();
        if node.kind() == FileType::Directory {
            failures.note(self.remove_below(node, path, 0))?;
        }
        // What is left below it is told already.
        if failures.is_empty() {
            failures.note(self.remove_name(parent, name, node, path))?;
        }
        failures.into_result()
    }

    fn remove_below(&self, directory: &Node, path: &str, depth: usize) -> Result<()> {
        if depth >= MAX_DEPTH {
            let why = "directories are too deep within one another";
            let path = path.to_owned();
            return Err(Error::Path { path, why });
        }
        let mut failures = Failures::default();
        for (name, node) in self.entries(directory, path)? {
            let below = format!("{path}/{}", text(&name));
            failures.note(self.remove_entry(directory, name, &node, &below, depth))?;
        }
        failures.into_result()
    }

    /// Removes one entry of a directory, with everything below it.
    fn remove_entry(
        &self,
        directory: &Node,
        name: Vec<u8>,
        node: &Node,
        path: &str,
        depth: usize,
    ) -> Result<()> {
        if node.kind() == FileType::Directory {
            self.remove_below(node, path, depth + 1)?;
        }
        let name = CString::new(name).map_err(|_| Error::Path {
            path: path.to_owned(),
            why: "a name cannot hold a NUL",
        })?;
        self.remove_name(directory, &name, node, path)
    }

    fn remove_name(&self, parent: &Node, name: &CString, node: &Node, path: &str) -> Result<()> {
        let removed = if node.kind() == FileType::Directory {
            self.session.rmdir(parent.id, name)
        } else {
            self.session.unlink(parent.id, name)
        };
        removed.map_err(|source| Error::Refused {
            what: "remove",
            path: path.to_owned(),
            source,
        })
    }

    /// Renames a file or directory.
    pub(super) fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let (parent, name) = self.parent(from)?;
        let shown = text(from);
        let from = shown.as_str();
        let moved = self
            .child(&parent, name.as_bytes(), from)?
            .ok_or_else(|| Error::Missing(from.to_owned()))?;
        let (new_parent, new_name) = match self.find_if_there(to)? {
            Some(node) if node.kind() == FileType::Directory => (node, name.clone()),
            Some(_) if to.ends_with(b"/") => return Err(Error::NotDirectory(text(to))),
            there => {
                if there.is_none() && moved.kind() != FileType::Directory {
                    names_no_directory(to)?;
                }
                self.parent(to)?
            }
        };
        let renamed = self
            .session
            .rename(parent.id, &name, new_parent.id, &new_name);
        renamed.map_err(|source| Error::Refused {
            what: "rename",
            path: from.to_owned(),
            source,
        })
    }

    /// Makes a link at `path`.
    pub(super) fn link(&self, target: &[u8], path: &[u8], symbolic: bool) -> Result<()> {
        let (parent, name) = match self.find_if_there(path)? {
            Some(node) if node.kind() == FileType::Directory => (node, last_name(target)?),
            _ => {
                names_no_directory(path)?;
                self.parent(path)?
            }
        };
        let made = if symbolic {
            let target = CString::new(target).map_err(|_| Error::Path {
                path: text(target),
                why: "a link's target cannot hold a NUL",
            })?;
            self.session.symlink(parent.id, &name, &target)
        } else {
            let node = self.find(target, LastLink::Follow)?;
            self.session.link(node.id, parent.id, &name)
        };
        let entry = made.map_err(|source| Error::Refused {
            what: "make",
            path: text(path),
            source,
        })?;
        drop(Node::of(&self.session, &entry));
        Ok(())
    }

    /// The node at `path`, or None if the name does not exist.
    pub(super) fn find_if_there(&self, path: &[u8]) -> Result<Option<Rc<Node>>> {
        match self.find(path, LastLink::Follow) {
            Ok(node) => Ok(Some(node)),
            Err(Error::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A path that ends in a slash names a directory, and no file is made there.
pub(super) fn names_no_directory(path: &[u8]) -> Result<()> {
    match path.ends_with(b"/") {
        true => Err(Error::Path {
            path: text(path),
            why: "there is no such directory",
        }),
        false => Ok(()),
    }
}

/// Why a directory was not made.
enum MkdirError {
    /// Its parent cannot be reached.
    Path(Error),
    /// The daemon refused.
    Refused(driver::Error),
}

fn refused<'a>(what: &'static str, path: &'a [u8]) -> impl FnOnce(MkdirError) -> Error + 'a {
    move |made| match made {
        MkdirError::Path(error) => error,
        MkdirError::Refused(source) => Error::Refused {
            what,
            path: text(path),
            source,
        },
    }
}
