//! A connection to a Unix socket, within a limit.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// How often a socket whose queue of connections is full is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// Connects to the socket at `path`; the connection does not block. A plain connect waits without limit while the socket's queue
/// of connections is full.
///
/// # Errors
/// As `connect`; [`io::ErrorKind::WouldBlock`] when the queue is still full after `limit`.
pub(crate) fn connect_within(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let begun = Instant::now();
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if begun.elapsed() < limit => thread::sleep(RETRY),
            Err(errno) => return Err(errno.into()),
        }
    }
}
