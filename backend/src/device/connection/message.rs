//! vhost-user messages as they pass by: header, payload, descriptors (vhost-user, "Message Specification").

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Request, flags, payload size: 4 bytes each.
pub(in crate::device) const HEADER_LEN: usize = 12;

/// No message is longer; the longest in use carries 256 bytes of configuration space.
const MAX_PAYLOAD_LEN: usize = 4096;

/// Descriptors that may come with one message (the protocol's eight memory regions, and room).
const MAX_DESCRIPTORS: usize = 32;

/// One message in either direction.
pub(in crate::device) struct Message {
    /// Header and payload.
    pub(in crate::device) bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// Why a message cannot be had from a peer.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The peer closed the connection between two messages.
    #[error("the peer has hung up")]
    HungUp,
    /// The peer closed the connection within a message.
    #[error("the peer has hung up within a message")]
    Cut,
    /// The header announces more than any message has.
    #[error("request {request} announces a payload of {len} bytes, more than {MAX_PAYLOAD_LEN}")]
    TooLong {
        /// The request's number.
        request: u32,
        /// The announced length.
        len: usize,
    },
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[from] io::Error),
}

impl Message {
    /// A message without descriptors.
    #[cfg(test)]
    pub(in crate::device) fn new(request: u32, payload: &[u8]) -> Self {
        let len = u32::try_from(payload.len()).expect("a test's payload is short");
        let mut bytes = Vec::new();
        for word in [request, 1, len] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(payload);
        Self {
            bytes,
            descriptors: Vec::new(),
        }
    }

    /// Receives one whole message; waits for the rest of it once it has begun.
    pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<Self, ReceiveError> {
        let mut message = Self {
            bytes: vec![0; HEADER_LEN],
            descriptors: Vec::new(),
        };
        message.fill(socket, 0)?;
        let len = usize::try_from(message.word(8)).unwrap_or(usize::MAX);
        if len > MAX_PAYLOAD_LEN {
            let request = message.request();
            return Err(ReceiveError::TooLong { request, len });
        }
        message.bytes.resize(HEADER_LEN + len, 0);
        message.fill(socket, HEADER_LEN)?;
        Ok(message)
    }

    /// Sends the message with its descriptors.
    pub(super) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let descriptors: Vec<BorrowedFd<'_>> = self.descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors))
        {
            return Err(io::Error::other("too many descriptors in one message"));
        }
        let mut sent = 0;
        while let Some(rest @ [_, ..]) = self.bytes.get(sent..) {
            let part = retry(|| {
                sendmsg(
                    socket,
                    &[IoSlice::new(rest)],
                    &mut ancillary,
                    SendFlags::NOSIGNAL,
                )
            })?;
            // The descriptors went with the first part.
            ancillary.clear();
            sent += part;
        }
        Ok(())
    }

    /// The request's number (vhost-user, "Front-end message types").
    pub(in crate::device) fn request(&self) -> u32 {
        self.word(0)
    }

    /// Shortens the payload to `len` bytes and says so in the header.
    pub(in crate::device) fn truncate_payload(&mut self, len: usize) {
        self.bytes.truncate(HEADER_LEN + len);
        let len = u32::try_from(self.bytes.len().saturating_sub(HEADER_LEN)).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(8..HEADER_LEN) {
            place.copy_from_slice(&len.to_le_bytes());
        }
    }

    fn word(&self, offset: usize) -> u32 {
        let bytes = self.bytes.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |word| u32::from_le_bytes(*word))
    }

    /// Receives until `bytes` is full from `filled` on, and keeps the descriptors that come along.
    fn fill(&mut self, socket: BorrowedFd<'_>, mut filled: usize) -> Result<(), ReceiveError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        while let Some(rest @ [_, ..]) = self.bytes.get_mut(filled..) {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = retry(|| {
                let flags = RecvFlags::CMSG_CLOEXEC;
                recvmsg(socket, &mut [IoSliceMut::new(rest)], &mut ancillary, flags)
            })?;
            for control in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = control {
                    self.descriptors.extend(descriptors);
                }
            }
            if self.descriptors.len() > MAX_DESCRIPTORS {
                return Err(ReceiveError::Socket(io::Error::other(
                    "too many descriptors in one message",
                )));
            }
            match received.bytes {
                0 if filled == 0 => return Err(ReceiveError::HungUp),
                0 => return Err(ReceiveError::Cut),
                count => filled += count,
            }
        }
        Ok(())
    }
}

/// Calls again after a signal.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_message_passes_with_payload_and_descriptors() {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        let mut sent = Message::new(5, b"payload");
        sent.descriptors = vec![near.as_fd().try_clone_to_owned().expect("cloned")];
        sent.send(near.as_fd()).expect("sent");
        let received = Message::receive(far.as_fd()).expect("received");
        assert_eq!((received.request(), &received.bytes), (5, &sent.bytes));
        assert_eq!(received.descriptors.len(), 1);
    }

    #[test]
    fn hanging_up_within_a_message_is_told_from_hanging_up_after_one() {
        let (mut near, far) = UnixStream::pair().expect("a socket pair");
        Message::new(1, b"").send(near.as_fd()).expect("sent");
        near.write_all(&[1, 0]).expect("written");
        drop(near);
        assert!(Message::receive(far.as_fd()).is_ok());
        assert!(matches!(
            Message::receive(far.as_fd()),
            Err(ReceiveError::Cut)
        ));
        assert!(matches!(
            Message::receive(far.as_fd()),
            Err(ReceiveError::HungUp)
        ));
    }

    #[test]
    fn an_absurd_length_is_refused_before_anything_is_allocated() {
        let (mut near, far) = UnixStream::pair().expect("a socket pair");
        near.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255])
            .expect("written");
        let refused = Message::receive(far.as_fd());
        assert!(matches!(
            refused,
            Err(ReceiveError::TooLong {
                request: 1,
                len: 0xffff_ffff
            })
        ));
    }
}
