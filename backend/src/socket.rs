//! The socket guests connect to.

mod owner;
mod pid_file;

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use thiserror::Error;

use crate::sys::process;
use pid_file::PidFile;

/// Who may connect: the owner, and the group where one is named. Connecting takes write permission.
const OWNER_ONLY: Mode = Mode::from_raw_mode(0o600);
const OWNER_AND_GROUP: Mode = Mode::from_raw_mode(0o660);

/// Guests that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Where the listening socket comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Made here.
    Path {
        /// The socket's file.
        path: PathBuf,
        /// Group that may connect beside the owner.
        group: Option<String>,
    },
    /// Inherited, already listening, by descriptor number.
    Fd(i32),
}

/// There is no socket to serve.
#[derive(Debug, Error)]
pub enum Error {
    /// The path has no last component.
    #[error("socket path {0:?} names no file")]
    NoFileName(PathBuf),
    /// The directory the socket is to be in.
    #[error("cannot open directory {directory:?}, where the socket is to be")]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file that locks the socket's name.
    #[error("cannot {what} pid file {path:?}")]
    PidFile {
        /// What was being done.
        what: &'static str,
        /// The pid file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon has the lock.
    #[error(
        "socket {path:?} is in use: {owner} has locked its pid file; stop it or pass another \
         --socket-path"
    )]
    Locked {
        /// The socket.
        path: PathBuf,
        /// Who, in words.
        owner: String,
    },
    /// Somebody listens at the path.
    #[error(
        "socket {path:?} is in use: {owner} listens there; stop it or pass another --socket-path"
    )]
    Live {
        /// The socket.
        path: PathBuf,
        /// Who, in words.
        owner: String,
    },
    /// Something else has the name.
    #[error("{path:?} exists and is {what}, not a socket: remove it or pass another --socket-path")]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// A system call on the socket's file.
    #[error("cannot {what} socket {path:?}")]
    File {
        /// What was being done.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `--socket-group` names nobody.
    #[error("--socket-group: there is no group {0:?}")]
    NoGroup(String),
    /// Groups cannot be looked up.
    #[error("cannot look up group {group:?}")]
    Group {
        /// The group.
        group: String,
        /// Why.
        source: io::Error,
    },
    /// `--fd` is not open.
    #[error("--fd: descriptor {fd} cannot be used")]
    Descriptor {
        /// Its number.
        fd: i32,
        /// Why.
        source: io::Error,
    },
    /// `--fd` is open but something else.
    #[error("--fd: descriptor {fd} is {what}; expected a listening Unix stream socket")]
    WrongDescriptor {
        /// Its number.
        fd: i32,
        /// What it is.
        what: &'static str,
    },
}

/// A listening socket and, where they were made here, its files.
#[derive(Debug)]
pub struct Listening {
    /// Ready to accept.
    pub listener: UnixListener,
    /// What to remove in the end.
    pub files: Option<Files>,
}

/// The files of a socket made here. The name stays locked as long as this lives.
#[derive(Debug)]
pub struct Files {
    /// Held, so that the files are found again whatever the working directory is by then.
    directory: OwnedFd,
    name: OsString,
    identity: (u64, u64),
    pid_file: PidFile,
}

impl Files {
    /// Removes the socket and the pid file, unless another file has taken the name since.
    pub fn remove(self) {
        remove_if_still(self.directory.as_fd(), &self.name, self.identity);
        remove_if_still(
            self.directory.as_fd(),
            self.pid_file.name(),
            self.pid_file.identity(),
        );
    }
}

/// Makes the socket at `path`, where the owner may connect and `group`, if any.
///
/// # Errors
/// [`enum@Error`], worded for the operator.
pub fn bind(path: &Path, group: Option<&str>) -> Result<Listening, Error> {
    // Looked up first: a mistyped group leaves nothing behind.
    let group = group.map(lookup_group).transpose()?;
    let name = path
        .file_name()
        .ok_or_else(|| Error::NoFileName(path.to_owned()))?
        .to_owned();
    let directory = open_directory(path)?;
    let failed = |what| {
        move |source: io::Error| Error::File {
            what,
            path: path.to_owned(),
            source,
        }
    };

    let pid_file = pid_file::lock(directory.as_fd(), path, &name)?;
    clear_the_way(directory.as_fd(), path, &name)?;

    let listener = open_listener(path).map_err(failed("listen on"))?;
    let made = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("look at")(error.into()))?;
    let files = Files {
        directory,
        name,
        identity: identity(&made),
        pid_file,
    };
    if let Some(group) = group
        && let Err(error) = open_to_group(&files, group)
    {
        files.remove();
        return Err(failed("give its group access to")(error));
    }
    Ok(Listening {
        listener,
        files: Some(files),
    })
}

fn open_listener(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file takes its mode from the socket: at no time may anybody else connect.
    rustix::fs::fchmod(&socket, OWNER_ONLY)?;
    // The absolute path where it fits into an address: by it others find out who listens.
    let address = std::path::absolute(path)
        .ok()
        .and_then(|absolute| SocketAddrUnix::new(absolute).ok())
        .map_or_else(|| SocketAddrUnix::new(path), Ok)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).map_err(|error| Error::Directory {
        directory: directory.to_owned(),
        source: error.into(),
    })
}

/// Removes the socket a dead daemon has left; refuses everything else.
fn clear_the_way(directory: BorrowedFd<'_>, path: &Path, name: &OsStr) -> Result<(), Error> {
    let failed = |what| {
        move |source: io::Error| Error::File {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let found = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed("look for")(error.into())),
    };
    let file_type = FileType::from_raw_mode(found.st_mode);
    if file_type != FileType::Socket {
        return Err(Error::NotASocket {
            path: path.to_owned(),
            what: in_words(file_type),
        });
    }
    let owner =
        owner::of_listening_socket(identity(&found)).map_err(failed("find the owner of"))?;
    if let Some(owner) = owner {
        return Err(Error::Live {
            path: path.to_owned(),
            owner: owner.to_string(),
        });
    }
    log::info!("replacing the socket {path:?}, on which nobody listens any more");
    rustix::fs::unlinkat(directory, name, AtFlags::empty())
        .map_err(|error| failed("replace")(error.into()))
}

fn lookup_group(name: &str) -> Result<Gid, Error> {
    let none = || Error::NoGroup(name.to_owned());
    let c_name = CString::new(name).map_err(|_| none())?;
    let found = process::group_id(&c_name).map_err(|source| Error::Group {
        group: name.to_owned(),
        source,
    })?;
    found.map(Gid::from_raw).ok_or_else(none)
}

/// The group first, then the mode: before, the mode would admit the owner's own group.
fn open_to_group(files: &Files, group: Gid) -> io::Result<()> {
    rustix::fs::chownat(
        &files.directory,
        &files.name,
        None,
        Some(group),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(rustix::fs::chmodat(
        &files.directory,
        &files.name,
        OWNER_AND_GROUP,
        AtFlags::empty(),
    )?)
}

/// Takes over a socket that is already listening, before anything else has opened a descriptor.
///
/// # Errors
/// [`enum@Error`] saying what the descriptor is instead.
pub fn inherit(fd: i32) -> Result<Listening, Error> {
    let wrong = |what| Error::WrongDescriptor { fd, what };
    let failed = |source: io::Error| Error::Descriptor { fd, source };
    let socket = process::adopt(fd).map_err(failed)?;
    match sockopt::socket_domain(&socket) {
        Ok(AddressFamily::UNIX) => {}
        Ok(_) => return Err(wrong("a socket of another family")),
        Err(Errno::NOTSOCK) => return Err(wrong("no socket")),
        Err(error) => return Err(failed(error.into())),
    }
    if sockopt::socket_type(&socket).map_err(|error| failed(error.into()))? != SocketType::STREAM {
        return Err(wrong("a Unix socket of another type"));
    }
    if !sockopt::socket_acceptconn(&socket).map_err(|error| failed(error.into()))? {
        return Err(wrong("a Unix stream socket that does not listen"));
    }
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    Ok(Listening {
        listener: UnixListener::from(socket),
        files: None,
    })
}

fn remove_if_still(directory: BorrowedFd<'_>, name: &OsStr, expected: (u64, u64)) {
    let result = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if identity(&found) == expected => {
            rustix::fs::unlinkat(directory, name, AtFlags::empty())
        }
        // Gone already, or somebody else's by now.
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        log::warn!("cannot remove {name:?}: {error}");
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
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

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    #[test]
    fn socket_made_is_the_owners_alone_and_goes_with_its_pid_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listening = bind(&path, None).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let pid = std::fs::read_to_string(dir.path().join("s.pid")).unwrap();
        assert_eq!(pid, format!("{}\n", std::process::id()));
        UnixStream::connect(&path).unwrap();
        listening.files.unwrap().remove();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn socket_with_group_admits_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let own_group = std::fs::metadata(dir.path()).unwrap().gid();
        let listening = bind(&path, None).unwrap();
        open_to_group(listening.files.as_ref().unwrap(), Gid::from_raw(own_group)).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
        assert_eq!(metadata.gid(), own_group);
    }

    #[test]
    fn stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        // An older daemon's leftover, longer than our own text.
        std::fs::write(dir.path().join("s.pid"), "4294967295\nrubbish\n").unwrap();
        let listening = bind(&path, None).unwrap();
        let pid = std::fs::read_to_string(dir.path().join("s.pid")).unwrap();
        assert_eq!(pid, format!("{}\n", std::process::id()));
        UnixStream::connect(&path).unwrap();
        listening.files.unwrap().remove();
    }

    #[test]
    fn live_socket_is_refused_with_its_owner_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let other = UnixListener::bind(&path).unwrap();
        other.set_nonblocking(true).unwrap();
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, Error::Live { .. }), "{error}");
        assert!(error.to_string().contains(&std::process::id().to_string()));
        // Nobody has connected to find that out.
        assert_eq!(
            other.accept().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert!(path.exists());
    }

    #[test]
    fn locked_name_is_refused_with_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind(&path, None).unwrap();
        let error = bind(&path, None).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
        assert!(error.to_string().contains(&std::process::id().to_string()));
        first.files.unwrap().remove();
    }

    #[test]
    fn files_taken_over_by_another_are_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listening = bind(&path, None).unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        std::fs::write(&path, "somebody else's").unwrap();
        listening.files.unwrap().remove();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody else's");
        assert!(!dir.path().join("s.pid").exists());
    }

    #[test]
    fn other_things_at_the_path_are_refused_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "").unwrap();
        let error = bind(&path, None).unwrap_err().to_string();
        assert!(error.contains("a regular file"), "{error}");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        let error = bind(&path, None).unwrap_err().to_string();
        assert!(error.contains("a symbolic link"), "{error}");
    }

    #[test]
    fn missing_directory_or_group_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = bind(&dir.path().join("none/s"), None).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
        let error = bind(&dir.path().join("s"), Some("no such group")).unwrap_err();
        assert!(error.to_string().contains("no such group"), "{error}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn inherited_descriptor_must_listen() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        assert!(inherit(listener.into_raw_fd()).is_ok());

        let (one, _other) = UnixStream::pair().unwrap();
        let table = [
            (one.into_raw_fd(), "does not listen"),
            (
                UnixDatagram::unbound().unwrap().into_raw_fd(),
                "another type",
            ),
            (
                std::net::UdpSocket::bind("127.0.0.1:0")
                    .unwrap()
                    .into_raw_fd(),
                "another family",
            ),
            (
                std::fs::File::open("/dev/null").unwrap().into_raw_fd(),
                "no socket",
            ),
            (1_000_000_000, "cannot be used"),
        ];
        for (fd, hint) in table {
            let error = inherit(fd).unwrap_err().to_string();
            assert!(error.contains(hint), "{hint}: {error}");
        }
    }
}
