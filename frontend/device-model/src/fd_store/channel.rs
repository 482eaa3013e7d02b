//! Sends and receives one message with at most one descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::IntoBytes;

use super::message::Wire;

/// The result of a receive.
#[derive(Debug)]
pub(super) enum Received {
    /// A message.
    Message {
        /// All zero, which is neither a request nor an answer, if the message had another length.
        wire: Wire,
        /// The descriptor that came along; `None` if more than one came, or this process has no
        /// room for it.
        descriptor: Option<OwnedFd>,
    },
    /// The other end has closed the connection.
    End,
}

/// Sends `wire`. Fails as `sendmsg` does: with `EPIPE`, and without a signal, if the other end has
/// closed the connection.
pub(super) fn send(
    socket: impl AsFd,
    wire: Wire,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = &descriptor {
        let rights = SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor));
        // The space is for one descriptor.
        let fits = control.push(rights);
        debug_assert!(fits, "one descriptor fits");
    }
    let bytes = [IoSlice::new(wire.as_bytes())];
    loop {
        match sendmsg(&socket, &bytes, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return sent.map(|_| ()),
        }
    }
}

/// Receives a message. Fails as `recvmsg` does.
pub(super) fn receive(socket: impl AsFd) -> Result<Received, Errno> {
    let mut wire = Wire::default();
    // Room for two descriptors, so that a second one is noticed.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut bytes = [IoSliceMut::new(wire.as_mut_bytes())];
        match recvmsg(&socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Ok(Received::End);
    }
    if received.bytes != size_of::<Wire>() || received.flags.contains(ReturnFlags::TRUNC) {
        wire = Wire::default();
    }
    let descriptor = match descriptors.len() {
        1 if !received.flags.contains(ReturnFlags::CTRUNC) => descriptors.pop(),
        _ => None,
    };
    Ok(Received::Message { wire, descriptor })
}
