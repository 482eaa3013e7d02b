//! Messages that are read and stay in the socket, until they are recorded.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use gangplank_vhost_user::message::{
    FrontendReq, HEADER_LEN, Header, MAX_DESCRIPTORS, MAX_PAYLOAD_LEN, Message, MessageError,
    payload,
};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recv, recvmsg,
};
use zerocopy::FromBytes;

/// A message with its descriptors, which stays in the socket. `None` if it has not arrived as a
/// whole and in one part; whoever receives it then learns why.
pub(super) fn message(socket: BorrowedFd<'_>) -> Option<Message> {
    let mut header = [0; HEADER_LEN];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    if recv(socket, &mut header, flags).ok()?.0 != HEADER_LEN {
        return None;
    }
    let header = Header::read_from_bytes(&header).ok()?;
    let len = usize::try_from(header.len).ok()?;
    if len > MAX_PAYLOAD_LEN {
        return None;
    }
    let mut bytes = vec![0; HEADER_LEN + len];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let part = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, part, &mut beside, flags | RecvFlags::CMSG_CLOEXEC).ok()?;
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes != bytes.len() || received.flags.contains(ReturnFlags::CTRUNC) {
        return None;
    }
    // Linux looks at the next message as well while it peeks, and returns its descriptors.
    if !descriptors.is_empty() && !carries_descriptors(header.request, &bytes) {
        return None;
    }
    Some(Message {
        request: header.request,
        flags: header.flags,
        payload: bytes.split_off(HEADER_LEN),
        descriptors,
    })
}

/// Whether descriptors belong to a message of this request, given with its header.
fn carries_descriptors(request: u32, message: &[u8]) -> bool {
    let number = message.get(HEADER_LEN..).and_then(payload::to_u64);
    match FrontendReq::try_from(request) {
        Ok(
            FrontendReq::SET_MEM_TABLE
            | FrontendReq::ADD_MEM_REG
            | FrontendReq::SET_BACKEND_REQ_FD
            | FrontendReq::SET_INFLIGHT_FD,
        ) => true,
        Ok(
            FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR,
        ) => number.is_some_and(|number| number & payload::NO_DESCRIPTOR == 0),
        _ => false,
    }
}

/// Takes `len` bytes, which have arrived, out of the socket, and closes what is beside them.
pub(super) fn take_out(socket: BorrowedFd<'_>, len: usize) -> Result<(), MessageError> {
    let mut left = vec![0; len];
    while !left.is_empty() {
        match recv(socket, &mut left[..], RecvFlags::empty()) {
            Ok((0, _)) => return Err(MessageError::HungUp),
            Ok((taken, _)) => left.truncate(left.len().saturating_sub(taken)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Takes a message out of the socket if it is at the head of it.
pub(super) fn take_out_if_there(
    socket: BorrowedFd<'_>,
    message: &[u8],
) -> Result<(), MessageError> {
    let mut head = vec![0; message.len()];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match recv(socket, &mut head[..], flags) {
        Ok((len, _)) if len == message.len() && head == message => take_out(socket, len),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use gangplank_vhost_user::Deadline;

    #[test]
    fn a_message_stays_in_the_socket_with_its_descriptors_until_it_is_taken_out() {
        let (mut near, mut far) = UnixStream::pair().expect("sockets");
        let sent = Message::new(FrontendReq::SET_VRING_KICK, payload::from_u64(1));
        sent.send(far.as_fd(), &[far.as_fd()], Deadline::NONE)
            .expect("sent");
        far.write_all(b"next").expect("sent");
        for _ in 0..2 {
            let seen = message(near.as_fd()).expect("a message");
            assert_eq!(seen.to_bytes(), sent.to_bytes());
            assert_eq!(seen.descriptors.len(), 1);
        }
        take_out_if_there(near.as_fd(), b"other").expect("peeked");
        take_out_if_there(near.as_fd(), &sent.to_bytes()).expect("taken");
        take_out_if_there(near.as_fd(), &sent.to_bytes()).expect("peeked");
        assert!(message(near.as_fd()).is_none(), "no whole header");
        let mut rest = [0; 4];
        near.read_exact(&mut rest).expect("read");
        assert_eq!(&rest, b"next");
    }
}
