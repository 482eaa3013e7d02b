//! A Unix socket on which a program listens, and whose file it owns.
//!
//! Several programs may start at one path at the same time. Exactly one of them gets it:
//!
//! - `bind(2)` fails if a file has the name, so a new socket needs no lock.
//! - A socket whose process has ended is removed under a `flock(2)` of the directory. That leaves
//!   no file behind, and any user who may list the directory can take it.
//! - Nobody connects to find out whether a process listens: some daemons end with a connection.
//!
//! The directory part of the path is looked up once, with the links in it. From then on each name
//! is relative to that directory, and no link is followed.

mod error;
mod owner;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

pub use self::error::BindError;
use crate::owned_file::{FileId, OwnedFile, directory_of, open_directory_of};

/// The mode of a socket for a group. Connecting takes write permission.
const OWNER_AND_GROUP: Mode = Mode::from_raw_mode(0o660);

/// Connections that may wait to be accepted (`listen(2)`). Further ones wait in `connect`.
const BACKLOG: i32 = 128;

/// How often the file may come and go between two system calls before that is an error.
const ATTEMPTS: u32 = 16;

/// Time that another program may lock the directory. Programs of this crate take microseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval at which a locked directory is tried again: `flock(2)` has no time limit.
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct OwnedListener {
    // Dropped first: while the socket listens, no other program replaces the file.
    file: RemoveOnDrop,
    listener: UnixListener,
}

/// `None` once the caller removes the file.
#[derive(Debug)]
struct RemoveOnDrop(Option<OwnedFile>);

impl OwnedListener {
    /// Makes the socket at `path` and listens on it. Accepting does not block.
    ///
    /// `mode` says who may connect; without it, the process's umask decides. A socket on which no
    /// process listens any more is replaced.
    ///
    /// # Errors
    /// [`BindError::InUse`] if a process listens there, [`BindError::NotASocket`] if the file is
    /// something else, such as a symbolic link.
    pub fn bind(path: &Path, mode: Option<Mode>) -> Result<Self, BindError> {
        SocketPath::open(path)?.bind(&Permissions {
            mode,
            ..Permissions::default()
        })
    }

    /// Like [`bind`](Self::bind), for its owner alone, and for connections of whole packets
    /// (`SOCK_SEQPACKET`). Accepted ones have the type of a stream, and are not one.
    ///
    /// # Errors
    /// As [`bind`](Self::bind).
    pub fn bind_packets(path: &Path) -> Result<Self, BindError> {
        SocketPath::open(path)?.bind(&Permissions {
            mode: Some(Mode::RUSR | Mode::WUSR),
            group: None,
            are_packets: true,
        })
    }

    /// Like [`bind`](Self::bind), for the owner and the members of `group`.
    ///
    /// # Errors
    /// As [`bind`](Self::bind); also if this process may not give its files to the group.
    pub fn bind_for_group(path: &Path, group: Gid) -> Result<Self, BindError> {
        SocketPath::open(path)?.bind(&Permissions {
            mode: Some(OWNER_AND_GROUP),
            group: Some(group),
            are_packets: false,
        })
    }

    /// A socket that the process inherited, whose file is another's. Accepting does not block from
    /// now on.
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn inherited(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            file: RemoveOnDrop(None),
            listener,
        })
    }

    /// Accepts a connection.
    ///
    /// # Errors
    /// `accept(2)`'s: [`io::ErrorKind::WouldBlock`] if no connection waits.
    pub fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        self.listener.accept()
    }

    /// Separates the socket from its file, which the caller removes.
    #[must_use]
    pub fn into_parts(mut self) -> (UnixListener, Option<OwnedFile>) {
        (self.listener, self.file.0.take())
    }
}

impl AsFd for OwnedListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(file) = self.0.take() {
            file.remove();
        }
    }
}

/// Who may connect, and how.
#[derive(Default)]
struct Permissions {
    mode: Option<Mode>,
    group: Option<Gid>,
    are_packets: bool,
}

/// Where a socket is to be.
struct SocketPath<'a> {
    /// As the caller has it, for messages.
    path: &'a Path,
    directory: OwnedFd,
    name: OsString,
}

impl<'a> SocketPath<'a> {
    fn open(path: &'a Path) -> Result<Self, BindError> {
        let name = path.file_name().map(OsStr::to_owned);
        let name = name.ok_or_else(|| BindError::NoFileName(path.to_owned()))?;
        let directory = open_directory_of(path).map_err(|source| BindError::Directory {
            what: "open",
            directory: directory_of(path).to_owned(),
            source,
        })?;
        Ok(Self {
            path,
            directory,
            name,
        })
    }

    fn bind(&self, permissions: &Permissions) -> Result<OwnedListener, BindError> {
        for _ in 0..ATTEMPTS {
            if let Some(listener) = self.listen(permissions)? {
                return Ok(listener);
            }
            if !self.is_left_behind()? {
                continue;
            }
            let _lock = self.lock()?;
            if self.is_left_behind()? {
                log::info!("replacing socket {:?}, which no process uses", self.path);
                rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())
                    .map_err(self.failed("replace"))?;
            }
            if let Some(listener) = self.listen(permissions)? {
                return Ok(listener);
            }
        }
        Err(self.in_use())
    }

    /// Makes the socket and listens on it. Returns `None` if a file has its name.
    fn listen(&self, permissions: &Permissions) -> Result<Option<OwnedListener>, BindError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = match permissions.are_packets {
            true => SocketType::SEQPACKET,
            false => SocketType::STREAM,
        };
        let socket =
            socket_with(AddressFamily::UNIX, kind, flags, None).map_err(self.failed("create"))?;
        // The file gets the mode of the socket, less the umask (unix(7)), so that at no time more
        // users than `mode` allows can connect. Its group is this process's at first.
        if let Some(mode) = permissions.mode {
            let first = match permissions.group {
                Some(_) => mode & Mode::RWXU,
                None => mode,
            };
            rustix::fs::fchmod(&socket, first).map_err(self.failed("set the mode of"))?;
        }
        let address = self.address().map_err(self.failed("name"))?;
        match rustix::net::bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => return Ok(None),
            bound => bound.map_err(self.failed("create"))?,
        }
        let Some((file, stat)) = self.look()? else {
            return Err(BindError::Moved(self.path.to_owned()));
        };
        let owned = OwnedFile::new(self.directory.as_fd(), &self.name, FileId::from(&stat));
        let owned = owned.map_err(|source| BindError::Socket {
            what: "keep the directory of",
            path: self.path.to_owned(),
            source,
        })?;
        // Removes the file if the rest fails.
        let listener = OwnedListener {
            file: RemoveOnDrop(Some(owned)),
            listener: UnixListener::from(socket),
        };
        // Until it listens, nobody can connect.
        permit(&file, &stat, permissions).map_err(self.failed("set who may connect to"))?;
        rustix::net::listen(&listener, BACKLOG).map_err(self.failed("listen on"))?;
        Ok(Some(listener))
    }

    /// The address to bind. Other programs find the process that listens by it.
    fn address(&self) -> Result<SocketAddrUnix, Errno> {
        self.absolute()
            .iter()
            .find_map(|path| SocketAddrUnix::new(path).ok())
            // A relative path may be short enough where an absolute one is not.
            .map_or_else(|| SocketAddrUnix::new(self.path), Ok)
    }

    /// The absolute paths of the socket: without links, and as the caller spells it.
    fn absolute(&self) -> Vec<PathBuf> {
        let directory = fs::read_link(path_of(&self.directory)).ok();
        let plain = directory.map(|directory| directory.join(&self.name));
        let given = std::path::absolute(self.path).ok();
        plain
            .into_iter()
            .filter(|path| path.is_absolute())
            .chain(given)
            .collect()
    }

    /// Opens the file that has the name, whatever it is, without effect on it (`O_PATH`).
    fn look(&self) -> Result<Option<(OwnedFd, Stat)>, BindError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => file.map_err(self.failed("look for"))?,
        };
        let stat = rustix::fs::fstat(&file).map_err(self.failed("look at"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => Ok(Some((file, stat))),
            file_type => Err(BindError::NotASocket {
                path: self.path.to_owned(),
                what: in_words(file_type),
            }),
        }
    }

    /// Whether the name is a socket that no process uses. Returns `false` if it is free.
    fn is_left_behind(&self) -> Result<bool, BindError> {
        let Some((file, _)) = self.look()? else {
            return Ok(false);
        };
        match is_bound(&file).map_err(self.failed("find out whether a process uses"))? {
            true => Err(self.in_use()),
            false => Ok(true),
        }
    }

    /// Keeps other starters from replacing files of the directory, until the descriptor is closed.
    fn lock(&self) -> Result<OwnedFd, BindError> {
        let failed = |error: Errno| BindError::Directory {
            what: "lock",
            directory: directory_of(self.path).to_owned(),
            source: error.into(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::openat(&self.directory, ".", flags, Mode::empty()).map_err(failed)?;
        let until = Instant::now() + LOCK_TIMEOUT;
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(directory),
                Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(LOCK_RETRY),
                Err(Errno::WOULDBLOCK) => {
                    return Err(BindError::Locked(directory_of(self.path).to_owned()));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn in_use(&self) -> BindError {
        BindError::InUse {
            path: self.path.to_owned(),
            owner: owner::describe(&self.absolute()),
        }
    }

    fn failed(&self, what: &'static str) -> impl Fn(Errno) -> BindError {
        move |error| BindError::Socket {
            what,
            path: self.path.to_owned(),
            source: error.into(),
        }
    }
}

/// Gives the file the group, then the exact mode: before, the mode would admit another group. The
/// umask may have taken permissions away that the mode gives.
fn permit(file: &OwnedFd, stat: &Stat, permissions: &Permissions) -> Result<(), Errno> {
    if let Some(group) = permissions.group {
        rustix::fs::chownat(file, c"", None, Some(group), AtFlags::EMPTY_PATH)?;
    }
    match permissions.mode {
        Some(mode) if Mode::from_raw_mode(stat.st_mode) != mode => {
            // fchmod(2) refuses an O_PATH descriptor. This path leads to the file itself.
            rustix::fs::chmod(path_of(file), mode)
        }
        _ => Ok(()),
    }
}

/// Whether a process has bound the socket `file`.
///
/// A datagram socket cannot connect to a stream socket: the kernel refuses it with `EPROTOTYPE` if
/// a process uses the socket and with `ECONNREFUSED` if none does, and the process sees nothing
/// (Linux 6.1 `unix_find_bsd()`).
fn is_bound(file: &OwnedFd) -> Result<bool, Errno> {
    let probe = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path_of(file))?) {
        // PERM: a datagram socket that is connected to another.
        Ok(()) | Err(Errno::PROTOTYPE | Errno::PERM) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A path that leads to the file of a descriptor, whatever its name is by now (proc(5)).
fn path_of(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn in_words(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Socket | FileType::Unknown => "something else",
    }
}
