//! Bytes and file descriptors over a Unix stream socket (unix(7), `SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vmm_sys_util::eventfd::EventFd;

use crate::Deadline;
use crate::message::MessageError;

/// Descriptors that the kernel passes with one call at most (`SCM_MAX_FD`, include/net/scm.h).
pub const SCM_MAX_FD: usize = 253;

/// Sends all of `bytes`. The descriptors go with the first byte.
///
/// # Errors
/// [`MessageError::HungUp`], [`MessageError::Reset`], [`MessageError::Late`],
/// [`MessageError::Socket`]; [`MessageError::TooManyDescriptors`] beyond [`SCM_MAX_FD`].
pub fn send_all(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    deadline: Deadline,
) -> Result<(), MessageError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(MessageError::TooManyDescriptors { limit: SCM_MAX_FD });
    }
    let mut sent = 0;
    while let Some(rest @ [_, ..]) = bytes.get(sent..) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(socket, &[IoSlice::new(rest)], &mut control, flags) {
            Ok(part) => {
                control.clear();
                sent += part;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => deadline.wait(socket, PollFlags::OUT)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// What one call has received beside its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Bytes; 0 when the peer has hung up.
    pub(crate) len: usize,
    /// Whether the kernel has dropped descriptors: the process may not open more, or there were
    /// more than [`SCM_MAX_FD`].
    pub(crate) is_truncated: bool,
}

/// Receives into `bytes` without waiting, and appends the descriptors that come along.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
    receive_with(socket, bytes, &mut space, descriptors)
}

/// [`receive`], with `space` for the descriptors.
pub(crate) fn receive_with(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    space: &mut [MaybeUninit<u8>],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Received, Errno> {
    let mut control = RecvAncillaryBuffer::new(space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    received.map(|received| Received {
        len: received.bytes,
        is_truncated: received.flags.contains(ReturnFlags::CTRUNC),
    })
}

/// The descriptor of an event, which has no `AsFd` of its own (vmm-sys-util 0.15).
#[allow(
    unsafe_code,
    reason = "EventFd gives its descriptor away as a number only"
)]
pub(crate) fn borrow_event(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: `event` owns the descriptor, and lives as long as the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
