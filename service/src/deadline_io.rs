//! Reading from and writing to a peer that may be slow, with an end in time.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Waits until the socket is ready for `events`.
///
/// # Errors
/// `TimedOut` at the deadline; those of poll(2).
fn wait(socket: BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let limit = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(
        &mut [PollFd::from_borrowed_fd(socket, events)],
        Some(&limit),
    ) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads from a socket until `is_whole` of all bytes so far, the peer's end, or `limit` bytes.
///
/// # Errors
/// `TimedOut` at the deadline; those of recvfrom(2).
pub fn read_until(
    socket: BorrowedFd<'_>,
    limit: usize,
    deadline: Instant,
    is_whole: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; limit];
    let mut len = 0;
    while len < limit && !is_whole(&bytes[..len]) {
        wait(socket, PollFlags::IN, deadline)?;
        match recv(socket, &mut bytes[len..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => break,
            Ok((count, _)) => len += count,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Reads from a socket to its end.
///
/// # Errors
/// `TimedOut` at the deadline; `InvalidData` beyond `limit` bytes; those of recvfrom(2).
pub fn read_to_end(socket: BorrowedFd<'_>, limit: usize, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let part = read_until(socket, 64 * 1024, deadline, |_| false)?;
        if part.is_empty() {
            return Ok(bytes);
        }
        if bytes.len() + part.len() > limit {
            return Err(ErrorKind::InvalidData.into());
        }
        bytes.extend(part);
    }
}

/// Writes all bytes to a socket.
///
/// # Errors
/// `TimedOut` at the deadline; those of sendto(2).
pub fn write_all(socket: BorrowedFd<'_>, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        wait(socket, PollFlags::OUT, deadline)?;
        match send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
