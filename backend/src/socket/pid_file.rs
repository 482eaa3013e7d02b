//! The lock that keeps two daemons from one socket name: `<socket>.pid`, as virtiofsd has it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use gangplank_service::owned_file::{FileId, OwnedFile, directory_of, open_directory_of};
use gangplank_service::unix_listener::BindError;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::Error;

/// How often the file may vanish between opening and locking before that is an error.
const ATTEMPTS: u32 = 16;

/// The locked file. The lock goes with the last descriptor of it.
#[derive(Debug)]
pub(super) struct PidFile {
    _lock: File,
    file: OwnedFile,
}

impl PidFile {
    /// Removes the file, and then unlocks it.
    pub(super) fn remove(self) {
        self.file.remove();
    }
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
                _lock: file,
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
