//! Messages with descriptors over a `SOCK_SEQPACKET` socket (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// How long a call waits for the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Not at all: it fails with `WouldBlock`.
    None,
    /// Until then: it fails with `TimedOut`.
    Until(Instant),
    /// Always.
    Endless,
}

/// What one call has received beside its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes; 0 if the other end is closed.
    pub len: usize,
    /// Whether bytes or descriptors are lost: there was no room for them, or the process may not
    /// have more descriptors.
    pub is_cut: bool,
}

/// Sends a message. `space` has room for the descriptors (`rustix::cmsg_space!`).
///
/// # Errors
/// The other end is closed or does not receive within `patience`; `InvalidInput`: there is no room
/// for the descriptors; the process may not send descriptors.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    space: &mut [MaybeUninit<u8>],
    patience: Patience,
) -> io::Result<()> {
    let mut control = SendAncillaryBuffer::new(space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => patience.wait(socket, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives a message into `bytes`, and appends its descriptors, for which `space` has room.
///
/// # Errors
/// None comes within `patience`; those of recvmsg(2).
pub fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
    space: &mut [MaybeUninit<u8>],
    patience: Patience,
) -> io::Result<Received> {
    loop {
        let mut control = RecvAncillaryBuffer::new(space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let parts = &mut [IoSliceMut::new(bytes)];
        let received = match recvmsg(socket, parts, &mut control, flags) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {
                patience.wait(socket, PollFlags::IN)?;
                continue;
            }
            Err(Errno::CONNRESET) => {
                return Ok(Received {
                    len: 0,
                    is_cut: false,
                });
            }
            Err(error) => return Err(error.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        let lost = ReturnFlags::CTRUNC | ReturnFlags::TRUNC;
        return Ok(Received {
            len: received.bytes,
            is_cut: received.flags.intersects(lost),
        });
    }
}

impl Patience {
    /// Waits until the socket is ready, or has an error. One that is ready all the time, and gives
    /// or takes nothing, does not outlast the time.
    fn wait(self, socket: BorrowedFd<'_>, events: PollFlags) -> io::Result<()> {
        let limit = match self {
            Self::None => return Err(io::ErrorKind::WouldBlock.into()),
            Self::Until(end) => {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Some(Timespec::try_from(left).map_err(io::Error::other)?)
            }
            Self::Endless => None,
        };
        let ready = &mut [PollFd::from_borrowed_fd(socket, events)];
        match poll(ready, limit.as_ref()) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_socket_that_is_ready_all_the_time_does_not_outlast_the_deadline() {
        let (one, _other) = UnixStream::pair().unwrap();
        let wait = |end| Patience::Until(end).wait(one.as_fd(), PollFlags::OUT);
        let begun = Instant::now();
        let end = begun + Duration::from_millis(20);
        let error = loop {
            match wait(end) {
                Ok(()) => assert!(begun.elapsed() < Duration::from_secs(5), "endless"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(Instant::now() >= end);
    }
}
