//! `cat`, `cp`, `write`: file data into the share, out of it, and within it.

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use gangplank_fuse::{
    CreateIn, FlushIn, FopenFlags, Handle, InitFlags, OpenIn, OpenOut, ReleaseIn, SetattrIn,
    SetattrValid,
};
use gangplank_service::output::Output;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::error::{Error, Result};
use super::host::{HostReader, HostWriter, write_all};
use super::path::{LastLink, Node, Share, text};
use super::transfer::{FileIo, WriteStart, Writer};
use crate as driver;

/// Permissions of a file made from standard input.
const DEFAULT_FILE_MODE: u32 = 0o644;

/// Standard input's name in messages.
const STDIN_NAME: &str = "standard input";

/// An open file of the share. Dropping it closes the file; only [`OpenFile::close`] reports errors
/// of closing.
struct OpenFile<'a> {
    share: &'a Share,
    node: Rc<Node>,
    file: Handle,
    flags: FopenFlags,
    path: &'a str,
    is_open: bool,
}

/// What happens to the present contents of a file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteMode {
    Replace,
    Append,
}

impl<'a> OpenFile<'a> {
    fn new(share: &'a Share, node: Rc<Node>, opened: &OpenOut, path: &'a str) -> Self {
        Self {
            share,
            node,
            file: Handle::new(opened.fh),
            flags: FopenFlags::from_bits_retain(opened.open_flags),
            path,
            is_open: true,
        }
    }

    fn open(&self) -> FileIo<'_> {
        FileIo {
            session: &self.share.session,
            node: &self.node,
            file: self.file,
            path: self.path,
        }
    }

    /// Closes the file. The daemon reports here what it could not write of the data that it has
    /// accepted.
    fn close(mut self) -> Result<()> {
        let flushed = self.flush();
        self.is_open = false;
        let closed = flushed.and(self.release());
        closed.map_err(|source| refused("close", self.path, source))
    }

    /// FLUSH, as a kernel sends it: not if the daemon has set `FOPEN_NOFLUSH`.
    fn flush(&self) -> driver::Result<()> {
        if self.flags.contains(FopenFlags::NOFLUSH) {
            return Ok(());
        }
        let args = FlushIn {
            fh: self.file.get(),
            ..FlushIn::default()
        };
        ignore_enosys(self.share.session.flush(self.node.id, args))
    }

    fn release(&self) -> driver::Result<()> {
        let args = ReleaseIn {
            fh: self.file.get(),
            ..ReleaseIn::default()
        };
        ignore_enosys(self.share.session.release(self.node.id, args))
    }
}

/// A daemon without the operation has no error to report by it.
fn ignore_enosys(answer: driver::Result<()>) -> driver::Result<()> {
    match answer {
        Err(error) if error.errno() == Some(Errno::NOSYS) => Ok(()),
        answer => answer,
    }
}

impl Drop for OpenFile<'_> {
    fn drop(&mut self) {
        if self.is_open {
            // Another error is on its way to the caller already.
            let _ = self.release();
        }
    }
}

impl Share {
    /// Writes a file to standard output.
    pub(super) fn cat(&self, path: &str, out: &Output) -> Result<()> {
        let from = self.open_to_read(path)?;
        let mut written = 0;
        from.open()
            .read_all(|data| Ok(write_all(out.file(), &data, &mut written)?))?;
        from.close()
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
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(source.node.attr.mode & 0o777)
            .open(&target)
            .map_err(failed("make"))?;
        let mut file = HostWriter::new(file, target);
        source.open().read_all(|data| file.write(&data))?;
        file.close()?;
        source.close()
    }

    fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        let failed = |what| {
            move |source| Error::Host {
                what,
                path: from.to_owned(),
                source,
            }
        };
        let file = File::open(from).map_err(failed("open"))?;
        let metadata = file.metadata().map_err(failed("look at"))?;
        if metadata.is_dir() {
            return Err(Error::Directory(from.display().to_string()));
        }
        let name = from.file_name().unwrap_or_default();
        let name = CString::new(name.as_bytes()).unwrap_or_default();
        let target =
            self.open_to_write(to, &name, metadata.mode() & 0o777, WriteMode::Replace, None)?;
        self.fill(
            target,
            WriteStart::At(0),
            HostReader::new(file, from.to_owned()),
        )
    }

    fn copy_within(&self, from: &str, to: &str) -> Result<()> {
        let source = self.open_to_read(from)?;
        let mode = source.node.attr.mode & 0o777;
        let name = last_name(from)?;
        let target = self.open_to_write(to, &name, mode, WriteMode::Replace, Some(&source.node))?;
        let mut writer = Writer::new(target.open(), WriteStart::At(0));
        let read = source.open().read_all(|data| writer.push(data));
        // The data that was read is written, even if reading has failed.
        let written = writer.finish();
        read.and(written)?;
        target.close()?;
        source.close()
    }

    /// Writes everything that `source` has to `target`, and closes `target`.
    fn fill(
        &self,
        target: OpenFile<'_>,
        position: WriteStart,
        mut source: HostReader,
    ) -> Result<()> {
        let mut writer = Writer::new(target.open(), position);
        let room = writer.room();
        let filled = loop {
            match source.next(&self.session, room) {
                Ok(None) => break Ok(()),
                Ok(Some(data)) => {
                    if let Err(error) = writer.push(data) {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        // The data that was read is written, even if reading has failed.
        let written = writer.finish();
        filled.and(written)?;
        target.close()
    }

    /// Writes standard input to a file.
    pub(super) fn write_input(&self, path: &str, append: bool) -> Result<()> {
        let input = io::stdin().as_fd().try_clone_to_owned();
        let input = input.map_err(|source| Error::Host {
            what: "read",
            path: PathBuf::from(STDIN_NAME),
            source,
        })?;
        let source = HostReader::new(input.into(), PathBuf::from(STDIN_NAME));
        self.write_from(source, path, append)
    }

    /// Writes everything that `source` has to a file, replacing its contents or appending to them.
    pub(super) fn write_from(&self, source: HostReader, path: &str, append: bool) -> Result<()> {
        let name = last_name(path)?;
        let contents = match append {
            true => WriteMode::Append,
            false => WriteMode::Replace,
        };
        let target = self.open_to_write(path, &name, DEFAULT_FILE_MODE, contents, None)?;
        let position = match contents {
            WriteMode::Append => WriteStart::End(target.node.attr.size),
            WriteMode::Replace => WriteStart::At(0),
        };
        self.fill(target, position, source)
    }

    fn open_to_read<'a>(&'a self, path: &'a str) -> Result<OpenFile<'a>> {
        let node = self.find(path, LastLink::Follow)?;
        self.must_be_regular(&node, path)?;
        let opened = self.open_node(&node, OFlags::RDONLY, path)?;
        Ok(OpenFile::new(self, node, &opened, path))
    }

    /// Opens or makes the file at `path`, or `name` in it if it is a directory. Fails if that is
    /// the file `other`.
    fn open_to_write<'a>(
        &'a self,
        path: &'a str,
        name: &CString,
        mode: u32,
        contents: WriteMode,
        other: Option<&Node>,
    ) -> Result<OpenFile<'a>> {
        let (parent, name, there) = self.destination(path, name)?;
        let mut flags = OFlags::WRONLY;
        flags.set(OFlags::APPEND, contents == WriteMode::Append);
        let Some(node) = there else {
            let flags = flags | OFlags::CREATE | OFlags::LARGEFILE;
            let args = CreateIn {
                flags: flags.bits(),
                mode: FileType::RegularFile.as_raw_mode() | mode,
                umask: 0,
                open_flags: 0,
            };
            let created = self.session.create(parent.id, &name, args);
            let (entry, opened) = created.map_err(|source| refused("make", path, source))?;
            let node = Rc::new(Node::of(&self.session, &entry));
            return Ok(OpenFile::new(self, node, &opened, path));
        };
        self.must_be_regular(&node, path)?;
        if other.is_some_and(|other| other.id == node.id) {
            return Err(Error::Path {
                path: path.to_owned(),
                why: "it is the same file",
            });
        }
        let truncate = contents == WriteMode::Replace;
        let atomic = self.session.init().features();
        let atomic = atomic.contains(InitFlags::ATOMIC_O_TRUNC);
        flags.set(OFlags::TRUNC, truncate && atomic);
        let opened = self.open_node(&node, flags, path)?;
        let file = OpenFile::new(self, node, &opened, path);
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

    fn open_node(&self, node: &Node, flags: OFlags, path: &str) -> Result<OpenOut> {
        let args = OpenIn {
            flags: (flags | OFlags::LARGEFILE).bits(),
            open_flags: 0,
        };
        let opened = self.session.open(node.id, args);
        opened.map_err(|source| refused("open", path, source))
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
