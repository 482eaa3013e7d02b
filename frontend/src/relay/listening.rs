//! A socket that the relay listens at: made when it starts, removed when it ends.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::debug;
use rustix::fs::Mode;

/// The socket, as long as it listens. Its file goes when this does.
#[derive(Debug)]
pub(super) struct Listening {
    listener: UnixListener,
    path: PathBuf,
}

impl Listening {
    /// Makes the socket, for everybody whom the process's mask allows, or for those whom `mode` does. To be called before any
    /// thread is started: the mask is the process's.
    ///
    /// # Errors
    /// As `bind`; [`io::ErrorKind::AddrInUse`] where somebody listens already, or where there is something other than a socket
    /// that a process has left behind.
    pub(super) fn bind(path: &Path, mode: Option<Mode>) -> io::Result<Self> {
        let before = mode.map(|mode| rustix::process::umask(!mode));
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
                fs::remove_file(path).and_then(|()| UnixListener::bind(path))
            }
            bound => bound,
        };
        before.map(rustix::process::umask);
        let listener = listener?;
        // Another process may take a connection that was waiting.
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// A connection, if one waits.
    pub(super) fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
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

/// Whether nobody listens at the socket any more.
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
