//! The two sockets of a connection: the frontend's, and the private one to vhost-user-backend.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;

use gangplank_vhost_user::Deadline;
use gangplank_vhost_user::message::{Inbox, Message, MessageError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Error;

/// Creates a connected socket, and a listener whose only pending connection is its other end.
///
/// vhost-user-backend accepts nothing but a listener. The kernel picks the address. With a backlog
/// of zero, connect succeeds only while no other connection is pending, so the listener cannot
/// accept a foreign one.
pub(super) fn private_socket() -> io::Result<(OwnedFd, UnixListener)> {
    let new = || {
        rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
    };
    let listener = new()?;
    rustix::net::bind(&listener, &SocketAddrUnix::new_unnamed())?;
    rustix::net::listen(&listener, 0)?;
    let near = new()?;
    rustix::io::ioctl_fionbio(&near, true)?;
    rustix::net::connect(
        &near,
        &SocketAddrUnix::try_from(rustix::net::getsockname(&listener)?)?,
    )?;
    rustix::io::ioctl_fionbio(&near, false)?;
    Ok((near, UnixListener::from(listener)))
}

/// `None` if the other side has hung up.
pub(super) fn receive(from: BorrowedFd<'_>) -> Result<Option<Message>, Error> {
    match Inbox::default().wait(from, Deadline::NONE) {
        Err(MessageError::HungUp) => Ok(None),
        message => Ok(Some(message?)),
    }
}

/// False if the other side has hung up.
pub(super) fn hung_up(sent: Result<(), MessageError>) -> Result<bool, Error> {
    match sent {
        Err(MessageError::HungUp) => Ok(false),
        sent => Ok(sent.map(|()| true)?),
    }
}

pub(super) fn has_room(socket: BorrowedFd<'_>) -> Result<bool, MessageError> {
    let mut ready = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    wait(&mut ready, Some(&Timespec::default()))?;
    Ok(!ready[0].revents().is_empty())
}

pub(super) fn is_readable(ready: PollFlags) -> bool {
    ready.contains(PollFlags::IN) || is_closed(ready)
}

pub(super) fn is_closed(ready: PollFlags) -> bool {
    ready.intersects(PollFlags::HUP | PollFlags::ERR)
}

pub(super) fn wait(
    descriptors: &mut [PollFd<'_>],
    limit: Option<&Timespec>,
) -> Result<(), MessageError> {
    match poll(descriptors, limit) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(MessageError::Socket(error.into())),
    }
}
