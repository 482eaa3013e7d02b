//! `cat`, `cp`, `write`: file data into the share, out of it, and within it.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use gangplank_fuse::{CreateIn, InitFlags, SetattrIn, SetattrValid};
use gangplank_service::output::Output;
use rustix::fs::{FileType, OFlags};

use super::change::names_no_directory;
use super::error::{Error, Result};
use super::host::{HostReader, write_all};
use super::host_target::HostTarget;
use super::open_file::{OpenFile, refused};
use super::path::{Node, Share, last_name, text};
use super::progress::Progress;
use super::transfer::{Holes, WriteStart, Writer};

/// Permissions of a file made from standard input.
const DEFAULT_FILE_MODE: u32 = 0o644;

/// Standard input's name in messages.
const STDIN_NAME: &str = "standard input";

/// What happens to the present contents of a file that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteMode {
    Replace,
    Append,
}

impl Share {
    /// Writes a file to standard output.
    pub(super) fn cat(&self, path: &[u8], out: &Output) -> Result<()> {
        let from = self.open_to_read(path)?;
        let mut written = 0;
        from.io().read_all(Holes::Read, |_, data| {
            Ok(write_all(out.file(), &data, &mut written)?)
        })?;
        from.close()
    }

    /// Copies a file; a path in the share begins with a colon. The copy has the holes of the file,
    /// and gets its name when it is complete.
    pub(super) fn copy(&self, from: &[u8], to: &[u8]) -> Result<()> {
        match (from.strip_prefix(b":"), to.strip_prefix(b":")) {
            (Some(from), None) => self.copy_out(from, host_path(to)),
            (None, Some(to)) => self.copy_in(host_path(from), to),
            (Some(from), Some(to)) => self.copy_within(from, to),
            (None, None) => Err(Error::Path {
                path: format!("{} to {}", text(from), text(to)),
                why: "neither is in the share: a path in the share begins with a colon",
            }),
        }
    }

    fn copy_out(&self, from: &[u8], to: &Path) -> Result<()> {
        let source = self.open_to_read(from)?;
        let mut progress = Progress::of(from, source.node.attr.size);
        let mut path = PathBuf::from(to);
        if to.is_dir() {
            path.push(OsStr::from_bytes(last_name(from)?.as_bytes()));
        }
        let mut target = HostTarget::begin(path, source.node.attr.mode & 0o777)?;
        let holes = target.holes();
        let len = source.io().read_all(holes, |offset, data| {
            progress.add(data.len() as u64);
            target.write(offset, &data)
        })?;
        source.close()?;
        target.publish(len)
    }

    fn copy_in(&self, from: &Path, to: &[u8]) -> Result<()> {
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
        let to = self.destination_of_copy(to, &name, None)?;
        let target = self.begin_new(to, metadata.mode())?;
        let source = HostReader::new(file, from.to_owned(), Holes::Skip);
        let mut progress = Progress::of(from.as_os_str().as_bytes(), metadata.len());
        let len = self.fill(target.file()?, WriteStart::At(0), source, &mut progress)?;
        target.publish(len)
    }

    fn copy_within(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let source = self.open_to_read(from)?;
        let mut progress = Progress::of(from, source.node.attr.size);
        let name = last_name(from)?;
        let to = self.destination_of_copy(to, &name, Some(&source.node))?;
        let target = self.begin_new(to, source.node.attr.mode)?;
        let mut writer = Writer::new(target.file()?.io(), WriteStart::At(0));
        let read = source.io().read_all(Holes::Skip, |offset, data| {
            progress.add(data.len() as u64);
            writer.skip_to(offset);
            writer.push(data)
        });
        // The file is not closed while the daemon still writes.
        let written = writer.finish();
        let len = read?;
        written?;
        source.close()?;
        target.publish(len)
    }

    /// Writes everything that `source` has to `target`. Returns the length of `source`.
    fn fill(
        &self,
        target: &OpenFile<'_>,
        position: WriteStart,
        mut source: HostReader,
        progress: &mut Progress,
    ) -> Result<u64> {
        let mut writer = Writer::new(target.io(), position);
        let room = writer.room();
        let filled = loop {
            match source.next(&self.session, room) {
                Ok(None) => break Ok(source.len()),
                Ok(Some((offset, data))) => {
                    progress.add(data.len() as u64);
                    // Only a new file has holes, and it begins at 0.
                    if source.has_holes() {
                        writer.skip_to(offset);
                    }
                    if let Err(error) = writer.push(data) {
                        break Err(error);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        // The data that was read is written, even if reading has failed.
        let written = writer.finish();
        let len = filled?;
        written?;
        Ok(len)
    }

    /// Writes standard input to a file.
    pub(super) fn write_input(&self, path: &[u8], append: bool) -> Result<()> {
        let input = io::stdin().as_fd().try_clone_to_owned();
        let input = input.map_err(|source| Error::Host {
            what: "read",
            path: PathBuf::from(STDIN_NAME),
            source,
        })?;
        let source = HostReader::new(input.into(), PathBuf::from(STDIN_NAME), Holes::Read);
        self.write_from(source, path, append)
    }

    /// Writes everything that `source` has to a file, replacing its contents or appending to them.
    pub(super) fn write_from(&self, source: HostReader, path: &[u8], append: bool) -> Result<()> {
        let contents = match append {
            true => WriteMode::Append,
            false => WriteMode::Replace,
        };
        let target = self.open_to_write(path, contents)?;
        let position = match contents {
            WriteMode::Append => WriteStart::End(target.node.attr.size),
            WriteMode::Replace => WriteStart::At(0),
        };
        self.fill(&target, position, source, &mut Progress::hidden())?;
        target.close()
    }

    /// Opens or makes the file at `path`.
    fn open_to_write(&self, path: &[u8], contents: WriteMode) -> Result<OpenFile<'_>> {
        let there = self.find_if_there(path)?;
        let shown = text(path);
        let mut flags = OFlags::WRONLY;
        flags.set(OFlags::APPEND, contents == WriteMode::Append);
        let Some(node) = there else {
            names_no_directory(path)?;
            let (parent, name) = self.parent(path)?;
            let flags = flags | OFlags::CREATE | OFlags::LARGEFILE;
            let args = CreateIn {
                flags: flags.bits(),
                mode: FileType::RegularFile.as_raw_mode() | DEFAULT_FILE_MODE,
                umask: 0,
                open_flags: 0,
            };
            let created = self.session.create(parent.id, &name, args);
            let (entry, opened) = created.map_err(|source| refused("make", &shown, source))?;
            let node = Rc::new(Node::of(&self.session, &entry));
            return Ok(OpenFile::new(self, node, &opened, &shown));
        };
        let path = shown.as_str();
        self.must_be_regular(&node, path)?;
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
}

/// A path of the host.
pub(super) fn host_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
