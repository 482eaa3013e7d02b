//! A Unix socket on which a program listens, and whose file it owns.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::debug;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// Connections that may wait to be accepted (`listen(2)`). Further ones wait in `connect`.
const BACKLOG: i32 = 128;

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct OwnedListener {
    listener: UnixListener,
    path: PathBuf,
}

impl OwnedListener {
    /// Makes the socket at `path` and listens on it. Accepting does not block.
    ///
    /// `mode` says who may connect; without it, the process's umask decides. A socket on which no
    /// process listens any more is replaced.
    ///
    /// # Errors
    /// `bind(2)`'s: [`io::ErrorKind::AddrInUse`] if a process listens there, or if the file is no
    /// socket.
    pub fn bind(path: &Path, mode: Option<Mode>) -> io::Result<Self> {
        let listener = match listen(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
                fs::remove_file(path)?;
                listen(path, mode)?
            }
            listener => listener?,
        };
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Accepts a connection.
    ///
    /// # Errors
    /// `accept(2)`'s: [`io::ErrorKind::WouldBlock`] if no connection waits.
    pub fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        self.listener.accept()
    }
}

impl AsFd for OwnedListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for OwnedListener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn listen(path: &Path, mode: Option<Mode>) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the mode of the socket, less the umask (unix(7)), so that at no time more
    // users than `mode` allows can connect.
    if let Some(mode) = mode {
        rustix::fs::fchmod(&socket, mode)?;
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // The umask may have taken permissions away that `mode` gives.
    if let Some(mode) = mode {
        rustix::fs::chmod(path, mode)?;
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Whether [`OwnedListener::bind`] at `path` failed with `error` because a process listens there,
/// and not because the file is no socket.
#[must_use]
pub fn is_in_use(error: &io::Error, path: &Path) -> bool {
    error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_ok()
}

/// Whether the file is a socket on which no process listens. Connecting to another kind of file is
/// refused in the same way.
fn is_left_behind(path: &Path) -> bool {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(refused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn socket_that_was_left_behind_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fs.sock");
        drop(UnixListener::bind(&path).unwrap());
        let listening = OwnedListener::bind(&path, None).unwrap();
        let busy = OwnedListener::bind(&path, None).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::AddrInUse);
        drop(listening);
        assert!(!path.exists());
        fs::write(&path, b"precious").unwrap();
        assert!(OwnedListener::bind(&path, None).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn socket_is_for_those_whom_the_mode_allows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let _listening = OwnedListener::bind(&path, Some(Mode::RUSR | Mode::WUSR)).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
