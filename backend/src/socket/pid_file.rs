//! The lock that keeps two daemons from one socket name: `<socket>.pid`, as virtiofsd has it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use gangplank_service::owned_file::{FileId, OwnedFile, directory_of, open_directory_of};
use gangplank_service::unix_listener::BindError;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, unlinkat};
use rustix::io::Errno;

use super::Error;
use crate::handover::report;

/// How often the file may vanish between opening and locking before that is an error.
const ATTEMPTS: u32 = 16;

/// The locked file. The lock goes with the last descriptor of it.
#[derive(Debug)]
pub(super) struct PidFile {
    lock: File,
    file: OwnedFile,
    /// The name of the file beside it that has the outcome of the last reload.
    outcome: OsString,
}

impl PidFile {
    /// Removes the file and the one beside it, and then unlocks it.
    pub(super) fn remove(self) {
        let _ = unlinkat(self.file.directory(), &self.outcome, AtFlags::empty());
        self.file.remove();
    }

    /// The locked file.
    pub(super) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Replaces the file with the outcome of the last reload. Others see it whole.
    pub(super) fn report(&self, text: &str) -> io::Result<()> {
        let directory = self.file.directory();
        let mut new = self.outcome.clone();
        new.push(".new");
        // What a killed process has left.
        let _ = unlinkat(directory, &new, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let mut file = File::from(rustix::fs::openat(directory, &new, flags, mode)?);
        file.write_all(text.as_bytes())?;
        Ok(rustix::fs::renameat(
            directory,
            &new,
            directory,
            &self.outcome,
        )?)
    }
}

/// The pid file of `socket` that the process locked by `lock` before it became this program, and
/// its directory.
pub(super) fn inherit(socket: &Path, lock: OwnedFd) -> Result<(PidFile, OwnedFd), Error> {
    let directory = open_directory_of(socket).map_err(Error::Inherit)?;
    let id = rustix::fs::fstat(&lock).map_err(|error| Error::Inherit(error.into()))?;
    let name = beside(socket, ".pid");
    let file = OwnedFile::new(directory.as_fd(), &name, FileId::from(&id));
    let pid_file = PidFile {
        lock: lock.into(),
        file: file.map_err(Error::Inherit)?,
        outcome: beside(socket, report::SUFFIX),
    };
    Ok((pid_file, directory))
}

/// The name of a file beside `socket`.
fn beside(socket: &Path, suffix: &str) -> OsString {
    let mut name = socket.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    name
}

/// Locks the name of `socket` and writes this process's number into the lock file.
pub(super) fn lock(socket: &Path) -> Result<PidFile, Error> {
    let mut name = socket
        .file_name()
        .ok_or_else(|| BindError::NoFileName(socket.to_owned()))?
        .to_owned();
    name.push(".pid");
    let directory = open_directory_of(socket).map_err(|source| BindError::Directory {
        what: "open",
        directory: directory_of(socket).to_owned(),
        source,
    })?;
    let failed = |what| {
        let path = pid_path(socket);
        move |source: io::Error| Error::PidFile { what, path, source }
    };
    for _ in 0..ATTEMPTS {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed("open")(error.into()))?;
        let mut file = File::from(file);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::Locked {
                    path: socket.to_owned(),
                    owner: holder(&mut file),
                });
            }
            Err(error) => return Err(failed("lock")(error.into())),
        }
        let locked = rustix::fs::fstat(&file).map_err(|error| failed("look at")(error.into()))?;
        let named = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW);
        let id = FileId::from(&locked);
        if named.is_ok_and(|named| FileId::from(&named) == id) {
            write_pid(&mut file).map_err(failed("write"))?;
            return Ok(PidFile {
                file: OwnedFile::new(directory.as_fd(), &name, id).map_err(failed("keep"))?,
                lock: file,
                outcome: beside(socket, report::SUFFIX),
            });
        }
        // Its last owner removed it after we had opened it: what we have locked is no longer what
        // others find under the name.
    }
    Err(failed("lock")(io::ErrorKind::ResourceBusy.into()))
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

/// Who holds the lock, from what it wrote into the file.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(32).read_to_string(&mut text);
    match text.trim().parse::<u32>() {
        Ok(pid) if read.is_ok() => format!("process {pid}"),
        _ => "another process".to_owned(),
    }
}

fn pid_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".pid");
    path.into()
}
