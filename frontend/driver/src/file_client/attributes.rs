//! `touch`, `chmod`, `chown`: changes of attributes.

use std::os::unix::ffi::OsStrExt;

use gangplank_fuse::{CreateIn, SetattrIn, SetattrValid};
use rustix::fs::{FileType, Mode, OFlags};

use super::actions::TouchArgs;
use super::args::Owners;
use super::change::names_no_directory;
use super::error::{Error, Failures, Result};
use super::listing::MAX_DEPTH;
use super::mode::ModeChange;
use super::open_file::{OpenFile, refused};
use super::path::{LastLink, Node, Share, join, text};
use super::time::Moment;

/// Permissions of a file that `touch` makes.
const DEFAULT_FILE_MODE: u32 = 0o644;

/// The permissions that the process does not give to new files.
pub(super) fn umask() -> u32 {
    // There is no other way to read it. No other thread makes files.
    let umask = rustix::process::umask(Mode::RWXU);
    rustix::process::umask(umask);
    umask.as_raw_mode()
}

impl Share {
    /// Sets the times of a file, and makes it if it does not exist.
    pub(super) fn touch(&self, args: &TouchArgs, path: &[u8]) -> Result<()> {
        let node = match self.find_if_there(path)? {
            Some(node) => node,
            None if args.no_create => return Ok(()),
            None => {
                self.make_empty(path)?;
                if args.date.is_none() && args.reference.is_none() {
                    return Ok(());
                }
                self.find(path, LastLink::Follow)?
            }
        };
        let mut set = SetattrIn::default();
        let mut valid = SetattrValid::ATIME | SetattrValid::MTIME;
        if let Some(reference) = &args.reference {
            let like = self.find(reference.as_bytes(), LastLink::Follow)?.attr;
            (set.atime, set.atimensec) = (like.atime, like.atimensec);
            (set.mtime, set.mtimensec) = (like.mtime, like.mtimensec);
        } else if let Some(Moment {
            seconds,
            nanoseconds,
        }) = args.date
        {
            (set.atime, set.atimensec) = (seconds.cast_unsigned(), nanoseconds);
            (set.mtime, set.mtimensec) = (seconds.cast_unsigned(), nanoseconds);
        } else {
            valid |= SetattrValid::ATIME_NOW | SetattrValid::MTIME_NOW;
        }
        if args.access {
            valid.remove(SetattrValid::MTIME | SetattrValid::MTIME_NOW);
        }
        if args.modification {
            valid.remove(SetattrValid::ATIME | SetattrValid::ATIME_NOW);
        }
        set.valid = valid.bits();
        self.set(&node, "set the times of", &text(path), set)
    }

    fn make_empty(&self, path: &[u8]) -> Result<()> {
        names_no_directory(path)?;
        let (parent, name) = self.parent(path)?;
        let args = CreateIn {
            flags: (OFlags::WRONLY | OFlags::CREATE | OFlags::LARGEFILE).bits(),
            mode: FileType::RegularFile.as_raw_mode() | DEFAULT_FILE_MODE,
            umask: 0,
            open_flags: 0,
        };
        let shown = text(path);
        let created = self.session.create(parent.id, &name, args);
        let (entry, opened) = created.map_err(|source| refused("make", &shown, source))?;
        let node = Node::of(&self.session, &entry);
        OpenFile::new(self, node.into(), &opened, &shown).close()
    }

    /// Changes the permissions of a file, and of everything below it with `recursive`. Links have
    /// none.
    pub(super) fn chmod(&self, change: &ModeChange, path: &[u8], recursive: bool) -> Result<()> {
        let umask = umask();
        self.change_attributes(path, recursive, &mut |node, shown| {
            if node.kind() == FileType::Symlink {
                return Ok(());
            }
            let is_directory = node.kind() == FileType::Directory;
            let set = SetattrIn {
                valid: SetattrValid::MODE.bits(),
                mode: (node.attr.mode & !0o7777)
                    | change.apply(node.attr.mode, is_directory, umask),
                ..SetattrIn::default()
            };
            self.set(node, "set the permissions of", shown, set)
        })
    }

    /// Changes the owner of a file, and of everything below it with `recursive`.
    pub(super) fn chown(&self, owners: Owners, path: &[u8], recursive: bool) -> Result<()> {
        let mut valid = SetattrValid::empty();
        valid.set(SetattrValid::UID, owners.uid.is_some());
        valid.set(SetattrValid::GID, owners.gid.is_some());
        let set = SetattrIn {
            valid: valid.bits(),
            uid: owners.uid.unwrap_or_default(),
            gid: owners.gid.unwrap_or_default(),
            ..SetattrIn::default()
        };
        self.change_attributes(path, recursive, &mut |node, shown| {
            self.set(node, "set the owner of", shown, set)
        })
    }

    fn set(&self, node: &Node, what: &'static str, path: &str, args: SetattrIn) -> Result<()> {
        let set = self.session.setattr(node.id, args);
        set.map_err(|source| refused(what, path, source))?;
        Ok(())
    }

    fn change_attributes(
        &self,
        path: &[u8],
        recursive: bool,
        change: &mut dyn FnMut(&Node, &str) -> Result<()>,
    ) -> Result<()> {
        let node = self.find(path, LastLink::Follow)?;
        if !recursive {
            return change(&node, &text(path));
        }
        self.change_below(path, &node, 0, change)
    }

    /// Changes a directory after it is listed: the change may take the permission to list it, and
    /// before its entries: it may give the permission to change them.
    fn change_below(
        &self,
        path: &[u8],
        node: &Node,
        depth: usize,
        change: &mut dyn FnMut(&Node, &str) -> Result<()>,
    ) -> Result<()> {
        let shown = text(path);
        if node.kind() != FileType::Directory {
            return change(node, &shown);
        }
        if depth >= MAX_DEPTH {
            return Err(Error::Path {
                path: shown,
                why: "directories are too deep within one another",
            });
        }
        let mut failures = Failures::default();
        let listed = self.entries(node, &shown);
        failures.note(change(node, &shown))?;
        // A directory that could not be listed before the change may be now.
        let entries = listed.or_else(|_| self.entries(node, &shown));
        match entries {
            Ok(entries) => {
                for (name, child) in entries {
                    let below = join(path, &name);
                    failures.note(self.change_below(&below, &child, depth + 1, change))?;
                }
            }
            Err(error) => failures.note(Err(error))?,
        }
        failures.into_result()
    }
}
