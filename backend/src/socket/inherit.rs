//! A listening socket that the process inherits (`--fd`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::{Error, Listening};
use crate::sys::process;

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
    let socket = off_standard_input(socket).map_err(failed)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    Ok(Listening {
        listener: UnixListener::from(socket),
        files: None,
    })
}

/// Gives a socket that is standard input another number, so that no other file gets that one.
fn off_standard_input(socket: OwnedFd) -> io::Result<OwnedFd> {
    if socket.as_raw_fd() != rustix::stdio::raw_stdin() {
        return Ok(socket);
    }
    let moved = process::move_up(socket, 3)?;
    let nothing = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // If the number is free, opening may have taken it.
    if nothing.as_raw_fd() == rustix::stdio::raw_stdin() {
        std::mem::forget(nothing);
        return Ok(moved);
    }
    rustix::stdio::dup2_stdin(&nothing)?;
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

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
