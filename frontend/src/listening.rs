//! A Unix socket that a program listens at: made when it starts, removed when it ends.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::debug;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// Connections that wait to be accepted; further ones are made to wait.
const BACKLOG: i32 = 128;

/// The socket, as long as it listens. Its file goes when this does.
#[derive(Debug)]
pub struct Listening {
    listener: UnixListener,
    path: PathBuf,
}

impl Listening {
    /// Makes the socket, for everybody whom the process's mask allows, or for those whom `mode` does, in place of one that a
    /// process has left behind which is no more. It does not block.
    ///
    /// # Errors
    /// As `bind`; [`io::ErrorKind::AddrInUse`] where somebody listens already, or where there is something other than a socket.
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

    /// A connection, if one waits; [`io::ErrorKind::WouldBlock`] if none does.
    ///
    /// # Errors
    /// As `accept`.
    pub fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        self.listener.accept()
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn listen(path: &Path, mode: Option<Mode>) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets no more than the socket has (unix(7)), so it is nobody else's for a moment.
    if let Some(mode) = mode {
        rustix::fs::fchmod(&socket, mode)?;
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // And less by the process's mask.
    if let Some(mode) = mode {
        rustix::fs::chmod(path, mode)?;
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Whether [`Listening::bind`] at `path` failed with `error` because somebody listens there, and not over what else is there.
#[must_use]
pub fn is_in_use(error: &io::Error, path: &Path) -> bool {
    error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_ok()
}

/// Whether nobody listens at the socket any more. Connecting to a file that is none is refused just as well.
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
        let listening = Listening::bind(&path, None).unwrap();
        let busy = Listening::bind(&path, None).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::AddrInUse);
        drop(listening);
        assert!(!path.exists());
        fs::write(&path, b"precious").unwrap();
        assert!(Listening::bind(&path, None).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn socket_is_for_those_whom_the_mode_allows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let _listening = Listening::bind(&path, Some(Mode::RUSR | Mode::WUSR)).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
