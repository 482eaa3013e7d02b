//! Connecting to a Unix socket within a time limit.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Pause between two attempts while the listener's queue of connections is full.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Connects to the socket at `path`. The connection does not block.
///
/// A plain `connect` waits without limit while the listener's queue of connections is full.
///
/// # Errors
/// `connect(2)`'s: [`io::ErrorKind::WouldBlock`] if the queue is still full after `limit`.
pub fn connect_timeout(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let begun = Instant::now();
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if begun.elapsed() < limit => thread::sleep(RETRY_INTERVAL),
            Err(errno) => return Err(errno.into()),
        }
    }
}
