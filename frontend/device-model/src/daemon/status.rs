//! A socket that sends the devices' status to every program that connects.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use gangplank_service::unix_listener::{BindError, OwnedListener};
use log::debug;

/// Pause after a connection that could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The socket. Dropping it closes it and removes its file.
#[derive(Debug)]
pub(super) struct StatusSocket(OwnedListener);

impl StatusSocket {
    /// Listens at `path`. Fails as [`OwnedListener::bind`].
    pub(super) fn bind(path: &Path) -> Result<Self, BindError> {
        OwnedListener::bind(path, None).map(Self)
    }

    /// Sends `report` to every program that has connected since the last call. Does not wait for a
    /// slow reader, which gets a part.
    pub(super) fn answer(&self, report: impl Fn() -> String) {
        loop {
            let mut stream = match self.0.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // The process has no descriptor left for the connection, which stays in the
                    // queue. The pause keeps the main loop from spinning.
                    debug!("cannot accept a status request: {error}");
                    thread::sleep(ACCEPT_RETRY);
                    return;
                }
            };
            let sent = stream
                .set_nonblocking(true)
                .and_then(|()| stream.write_all(report().as_bytes()));
            if let Err(error) = sent {
                debug!("cannot send the status: {error}");
            }
        }
    }
}

impl AsFd for StatusSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn everybody_who_connects_gets_the_report_and_the_end_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("status");
        let socket = StatusSocket::bind(&path).unwrap();
        let mut asking: Vec<_> = (0..3)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        socket.answer(|| "all is well\n".to_owned());
        for stream in &mut asking {
            let mut heard = String::new();
            stream.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "all is well\n");
        }
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("status");
        drop(UnixListener::bind(&path).unwrap());
        let _first = StatusSocket::bind(&path).unwrap();
        let second = StatusSocket::bind(&path).unwrap_err();
        assert!(matches!(second, BindError::InUse { .. }), "{second}");
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("status");
        fs::write(&path, "notes").unwrap();
        StatusSocket::bind(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
    }
}
