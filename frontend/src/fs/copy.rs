//! `cat`, `cp`, `write`: file data into the share, out of it, and within.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use gangplank_fuse::{CreateIn, Handle, InitFlags, OpenIn, ReleaseIn, SetattrIn, SetattrValid};
use rustix::fs::{FileType, OFlags};

use super::error::{Error, Result};
use super::path::{Last, Node, Share, text};
use super::transfer::{Open, Writer, from_host, to_host};
use crate::driver;

/// Permissions of a file that standard input goes to.
const USUAL_MODE: u32 = 0o644;

/// A file of the share that is open: closed when dropped.
struct OpenFile<'a> {
    share: &'a Share,
    node: Rc<Node>,
    file: Handle,
    path: &'a str,
}

/// Begin with an empty file, or with what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    Replace,
    Keep,
}

impl OpenFile<'_> {
    fn open(&self) -> Open<'_> {
        Open {
            session: &self.share.session,
            node: &self.node,
            file: self.file,
            path: self.path,
        }
    }
}

impl Drop for OpenFile<'_> {
    fn drop(&mut self) {
        let args = ReleaseIn {
            fh: self.file.get(),
            ..ReleaseIn::default()
        };
        // Everything written was answered; closing adds nothing that could be lost.
        let _ = self.share.session.release(self.node.id, args);
    }
}

impl Share {
    /// Writes a file to standard output.
    pub(super) fn cat(&self, path: &str) -> Result<()> {
        let from = self.open_to_read(path)?;
        let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        from.open().read_all(|data| Ok(to_host(&mut out, &data)?))
    }

    /// Copies a file; a path in the share begins with a colon.
    pub(super) fn copy(&self, from: &str, to: &str) -> Result<()> {
        match (from.strip_prefix(':'), to.strip_prefix(':')) {
            (Some(from), None) => self.copy_out(from, Path::new(to)),
            (None, Some(to)) => self.copy_in(Path::new(from), to),
            (Some(from), Some(to)) => self.copy_within(from, to),
            (None, None) => Err(Error::Path {
                path: format!("{from} to {to}"),
                why: "neither is in the share: a path in the share begins with a colon",
            }),
        }
    }

    fn copy_out(&self, from: &str, to: &Path) -> Result<()> {
        let source = self.open_to_read(from)?;
        let mut target = PathBuf::from(to);
        if to.is_dir() {
            target.push(OsStr::from_bytes(last_name(from)?.as_bytes()));
        }
        let failed = |what| {
            let path = target.clone();
            move |source| Error::Host { what, path, source }
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(source.node.attr.mode & 0o777)
            .open(&target)
            .map_err(failed("make"))?;
        source
            .open()
            .read_all(|data| to_host(&mut file, &data).map_err(failed("write")))
    }

    fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        let failed = |what| {
            move |source| Error::Host {
                what,
                path: from.to_owned(),
                source,
            }
        };
        let mut file = File::open(from).map_err(failed("open"))?;
        let metadata = file.metadata().map_err(failed("look at"))?;
        if metadata.is_dir() {
            return Err(Error::Directory(from.display().to_string()));
        }
        let name = from.file_name().unwrap_or_default();
        let name = CString::new(name.as_bytes()).unwrap_or_default();
        let target =
            self.open_to_write(to, &name, metadata.mode() & 0o777, Contents::Replace, None)?;
        let mut writer = Writer::new(target.open(), 0);
        let room = writer.room();
        while let Some(data) = from_host(&mut file, &self.session, room).map_err(failed("read"))? {
            writer.push(data)?;
        }
        writer.finish()
    }

    fn copy_within(&self, from: &str, to: &str) -> Result<()> {
        let source = self.open_to_read(from)?;
        let mode = source.node.attr.mode & 0o777;
        let name = last_name(from)?;
        let target = self.open_to_write(to, &name, mode, Contents::Replace, Some(&source.node))?;
        let mut writer = Writer::new(target.open(), 0);
        source.open().read_all(|data| writer.push(data))?;
        writer.finish()
    }

    /// Writes standard input to a file.
    pub(super) fn write_input(&self, path: &str, append: bool) -> Result<()> {
        let name = last_name(path)?;
        let contents = match append {
            true => Contents::Keep,
            false => Contents::Replace,
        };
        let failed = |source| Error::Host {
            what: "read",
            path: PathBuf::from("standard input"),
            source,
        };
        let input = io::stdin().as_fd().try_clone_to_owned();
        let mut input = File::from(input.map_err(failed)?);
        let target = self.open_to_write(path, &name, USUAL_MODE, contents, None)?;
        let offset = match contents {
            Contents::Keep => target.node.attr.size,
            Contents::Replace => 0,
        };
        let mut writer = Writer::new(target.open(), offset);
        let room = writer.room();
        while let Some(data) = from_host(&mut input, &self.session, room).map_err(failed)? {
            writer.push(data)?;
        }
        writer.finish()
    }

    fn open_to_read<'a>(&'a self, path: &'a str) -> Result<OpenFile<'a>> {
        let node = self.find(path, Last::Follow)?;
        self.must_be_regular(&node, path)?;
        let file = self.open_node(&node, OFlags::RDONLY, path)?;
        Ok(OpenFile {
            share: self,
            node,
            file,
            path,
        })
    }

    /// Opens or makes the file at `path`, or `name` in it if it is a directory. Never the file `other`.
    fn open_to_write<'a>(
        &'a self,
        path: &'a str,
        name: &CString,
        mode: u32,
        contents: Contents,
        other: Option<&Node>,
    ) -> Result<OpenFile<'a>> {
        let (parent, name, there) = self.place(path, name)?;
        let Some(node) = there else {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::LARGEFILE;
            let args = CreateIn {
                flags: flags.bits(),
                mode: FileType::RegularFile.as_raw_mode() | mode,
                umask: 0,
                open_flags: 0,
            };
            let created = self.session.create(parent.id, &name, args);
            let (entry, opened) = created.map_err(|source| refused("make", path, source))?;
            return Ok(OpenFile {
                share: self,
                node: Rc::new(Node::of(&self.session, &entry)),
                file: Handle::new(opened.fh),
                path,
            });
        };
        self.must_be_regular(&node, path)?;
        if other.is_some_and(|other| other.id == node.id) {
            return Err(Error::Path {
                path: path.to_owned(),
                why: "it is the same file",
            });
        }
        let truncate = contents == Contents::Replace;
        let atomic = self.session.init().features();
        let atomic = atomic.contains(InitFlags::ATOMIC_O_TRUNC);
        let flags = match truncate && atomic {
            true => OFlags::WRONLY | OFlags::TRUNC,
            false => OFlags::WRONLY,
        };
        let file = self.open_node(&node, flags, path)?;
        let file = OpenFile {
            share: self,
            node,
            file,
            path,
        };
        if truncate && !atomic {
            let args = SetattrIn {
                valid: (SetattrValid::SIZE | SetattrValid::FH).bits(),
                fh: file.file.get(),
                ..SetattrIn::default()
            };
            let cut = self.session.setattr(file.node.id, args);
            cut.map_err(|source| refused("cut", path, source))?;
        }
        Ok(file)
    }

    fn open_node(&self, node: &Node, flags: OFlags, path: &str) -> Result<Handle> {
        let args = OpenIn {
            flags: (flags | OFlags::LARGEFILE).bits(),
            open_flags: 0,
        };
        let opened = self.session.open(node.id, args);
        let opened = opened.map_err(|source| refused("open", path, source))?;
        Ok(Handle::new(opened.fh))
    }

    fn must_be_regular(&self, node: &Node, path: &str) -> Result<()> {
        let path = path.to_owned();
        match node.kind() {
            FileType::RegularFile => Ok(()),
            FileType::Directory => Err(Error::Directory(path)),
            FileType::Symlink => Err(Error::Link {
                target: text(&self.target(node, &path)?),
                path,
            }),
            _ => Err(Error::Path {
                path,
                why: "it is no regular file",
            }),
        }
    }
}

/// A path's last component, as a name.
fn last_name(path: &str) -> Result<CString> {
    let name = path.trim_end_matches('/').rsplit('/').next();
    let bad = |why| Error::Path {
        path: path.to_owned(),
        why,
    };
    match name {
        None | Some("" | "." | "..") => Err(bad("the path ends in no name")),
        Some(name) => CString::new(name).map_err(|_| bad("a name cannot hold a NUL")),
    }
}

fn refused(what: &'static str, path: &str, source: driver::Error) -> Error {
    Error::Refused {
        what,
        path: path.to_owned(),
        source,
    }
}
