//! Whether a daemon listens at a socket, without a connection: virtiofsd serves one and ends with
//! it.

use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Why no daemon listens at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoDaemon {
    /// A process has bound the socket, but not for streams.
    #[error("it is no socket for streams")]
    OtherType,
    /// The system's error.
    #[error("{}", text(*.0))]
    System(Errno),
}

fn text(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "it does not exist".to_owned(),
        // Also for a file that is no socket.
        Errno::CONNREFUSED => "no process listens there".to_owned(),
        other => other.to_string(),
    }
}

/// Fails unless a process has a socket for streams at `path`.
///
/// A connect of a datagram socket to one for streams fails with EPROTOTYPE, and only if a process
/// has it open (Linux, `unix_find_bsd()`). That process notices nothing.
pub(crate) fn listens_at(path: &Path) -> Result<(), NoDaemon> {
    let address = SocketAddrUnix::new(path).map_err(NoDaemon::System)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
    match socket.and_then(|socket| connect(&socket, &address)) {
        Err(Errno::PROTOTYPE) => Ok(()),
        Ok(()) => Err(NoDaemon::OtherType),
        Err(errno) => Err(NoDaemon::System(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn a_listener_is_found_and_has_no_connection_from_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("daemon");
        let told = |path| listens_at(path).map_err(|error| error.to_string());
        assert_eq!(told(&path), Err("it does not exist".to_owned()));
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(told(&path), Ok(()));
        let connection = listener.accept().unwrap_err();
        assert_eq!(connection.kind(), ErrorKind::WouldBlock);
        drop(listener);
        assert_eq!(told(&path), Err("no process listens there".to_owned()));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert_eq!(told(&path), Err("no process listens there".to_owned()));
        std::fs::remove_file(&path).unwrap();
        let _other = UnixDatagram::bind(&path).unwrap();
        assert_eq!(told(&path), Err("it is no socket for streams".to_owned()));
    }
}
