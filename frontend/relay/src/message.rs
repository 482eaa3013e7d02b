//! vhost-user messages as bytes: header, payload, descriptors (vhost-user, "Message Specification").

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Request, flags, payload length: 4 bytes each.
const HEADER_LEN: usize = 12;

/// No message in use is longer; the longest carries 256 bytes of configuration space.
const MAX_PAYLOAD_LEN: usize = 4096;

/// Descriptors that may come with one message: one for each of a memory table's regions, and room.
const MAX_DESCRIPTORS: usize = 16;

/// Protocol version 1, in the flags of every message.
const VERSION: u32 = 1;

/// The message is an answer.
const REPLY: u32 = 1 << 2;

/// The message wants an acknowledgement although it has no answer of its own.
const NEED_REPLY: u32 = 1 << 3;

/// Message numbers (vhost-user, "Front-end message types").
pub(super) mod request {
    pub(crate) const GET_FEATURES: u32 = 1;
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_OWNER: u32 = 3;
    pub(crate) const RESET_OWNER: u32 = 4;
    pub(crate) const SET_MEM_TABLE: u32 = 5;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const GET_VRING_BASE: u32 = 11;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_VRING_ERR: u32 = 14;
    pub(crate) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const GET_QUEUE_NUM: u32 = 17;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(crate) const GET_CONFIG: u32 = 24;
    pub(crate) const RESET_DEVICE: u32 = 34;
    pub(crate) const SET_DEVICE_STATE_FD: u32 = 42;
    pub(crate) const CHECK_DEVICE_STATE: u32 = 43;
}

/// One message in either direction.
#[derive(Debug)]
pub(super) struct Message {
    /// Its number.
    pub(super) request: u32,
    flags: u32,
    /// What follows the header.
    pub(super) payload: Vec<u8>,
    /// What came beside it.
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Why no message can be had from a peer, or sent to it.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The peer closed the connection between two messages.
    #[error("the peer has hung up")]
    HungUp,
    /// The peer closed the connection within a message.
    #[error("the peer has hung up within a message")]
    Cut,
    /// The header announces more than any message has.
    #[error("message {request} announces a payload of {len} bytes, more than {MAX_PAYLOAD_LEN}")]
    TooLong {
        /// The message's number.
        request: u32,
        /// The announced length.
        len: usize,
    },
    /// More descriptors than any message has, or than this process can have.
    #[error(
        "a message carries more than {MAX_DESCRIPTORS} descriptors, \
         or more than this process may have open"
    )]
    TooManyDescriptors,
    /// The flags are none that a peer may send.
    #[error("message {request} has the flags {flags:#x}")]
    Flags {
        /// The message's number.
        request: u32,
        /// Its flags.
        flags: u32,
    },
    /// The peer takes nothing, or sends nothing, for too long.
    #[error("the peer did not go on within {0:?}")]
    Late(Duration),
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[from] io::Error),
}

impl Message {
    /// A request without descriptors.
    pub(super) fn new(request: u32, payload: Vec<u8>) -> Self {
        Self {
            request,
            flags: VERSION,
            payload,
            descriptors: Vec::new(),
        }
    }

    /// The same asking for an acknowledgement.
    pub(super) fn acknowledged(mut self) -> Self {
        self.flags |= NEED_REPLY;
        self
    }

    /// The answer to this message.
    pub(super) fn answer(&self, payload: Vec<u8>) -> Self {
        Self {
            request: self.request,
            flags: VERSION | REPLY,
            payload,
            descriptors: Vec::new(),
        }
    }

    /// Whether it wants an acknowledgement.
    pub(super) fn wants_acknowledgement(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// Whether it is an answer to `request`.
    pub(super) fn answers(&self, request: u32) -> bool {
        self.request == request && self.flags & REPLY != 0
    }

    /// The payload, if it is one number of 8 bytes.
    pub(super) fn u64(&self) -> Option<u64> {
        let bytes = self.payload.as_slice().try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// The payload, if it is two numbers of 4 bytes: a ring and a value.
    pub(super) fn ring_state(&self) -> Option<(u32, u32)> {
        let (ring, value) = self.payload.split_first_chunk::<4>()?;
        let value = value.try_into().ok()?;
        Some((u32::from_le_bytes(*ring), u32::from_le_bytes(value)))
    }

    /// Fails unless it is what a frontend may send.
    pub(super) fn check_request(&self) -> Result<(), WireError> {
        if self.flags & !NEED_REPLY == VERSION {
            return Ok(());
        }
        Err(WireError::Flags {
            request: self.request,
            flags: self.flags,
        })
    }

    /// Sends it, with `descriptors` beside it. The peer has to take it within `limit`.
    pub(super) fn send(
        &self,
        socket: BorrowedFd<'_>,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), WireError> {
        let until = Deadline::new(limit);
        let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.payload.len());
        for word in [self.request, self.flags, len] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.payload);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(WireError::TooManyDescriptors);
        }
        let mut sent = 0;
        while let Some(rest @ [_, ..]) = bytes.get(sent..) {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(socket, &[IoSlice::new(rest)], &mut ancillary, flags) {
                Ok(part) => {
                    // The descriptors went with the first part.
                    ancillary.clear();
                    sent += part;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => until.wait(socket, PollFlags::OUT)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(WireError::HungUp),
                Err(errno) => return Err(WireError::Socket(errno.into())),
            }
        }
        Ok(())
    }
}

/// A message of which a part may have arrived.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Inbox {
    /// Whether a message has begun and is not whole.
    pub(super) fn has_begun(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Takes what has arrived, without waiting: a message, once it is whole.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Message>, WireError> {
        loop {
            let missing = self.missing()?;
            if missing == 0 {
                return Ok(Some(self.take()));
            }
            let mut part = vec![0; missing];
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut part)],
                &mut ancillary,
                flags,
            );
            for control in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = control {
                    self.descriptors.extend(descriptors);
                }
            }
            // The kernel drops those for which there is no room, and says so by the flag.
            let dropped = received
                .as_ref()
                .is_ok_and(|received| received.flags.contains(ReturnFlags::CTRUNC));
            if dropped || self.descriptors.len() > MAX_DESCRIPTORS {
                return Err(WireError::TooManyDescriptors);
            }
            match received {
                Ok(received) if received.bytes == 0 => {
                    return Err(match self.has_begun() {
                        true => WireError::Cut,
                        false => WireError::HungUp,
                    });
                }
                Ok(received) => {
                    self.bytes
                        .extend_from_slice(part.get(..received.bytes).unwrap_or_default());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::CONNRESET) => return Err(WireError::HungUp),
                Err(errno) => return Err(WireError::Socket(errno.into())),
            }
        }
    }

    /// Waits for a whole message, for `limit`.
    pub(super) fn wait(
        &mut self,
        socket: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<Message, WireError> {
        let until = Deadline::new(limit);
        loop {
            if let Some(message) = self.receive(socket)? {
                return Ok(message);
            }
            until.wait(socket, PollFlags::IN)?;
        }
    }

    /// Bytes still to come: of the header first, since it tells of the others.
    fn missing(&self) -> Result<usize, WireError> {
        if let Some(missing @ 1..) = HEADER_LEN.checked_sub(self.bytes.len()) {
            return Ok(missing);
        }
        let len = usize::try_from(self.word(8)).unwrap_or(usize::MAX);
        if len > MAX_PAYLOAD_LEN {
            let request = self.word(0);
            return Err(WireError::TooLong { request, len });
        }
        Ok((HEADER_LEN + len).saturating_sub(self.bytes.len()))
    }

    fn take(&mut self) -> Message {
        let (request, flags) = (self.word(0), self.word(4));
        let mut payload = std::mem::take(&mut self.bytes);
        payload.drain(..HEADER_LEN);
        Message {
            request,
            flags,
            payload,
            descriptors: std::mem::take(&mut self.descriptors),
        }
    }

    fn word(&self, offset: usize) -> u32 {
        let bytes = self.bytes.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |word| u32::from_le_bytes(*word))
    }
}

/// A time by which a peer has to have gone on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    limit: Duration,
    end: Instant,
}

impl Deadline {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            end: Instant::now() + limit,
        }
    }

    /// Waits for `events` on `descriptor`, or for it to be hung up.
    pub(super) fn wait(&self, descriptor: impl AsFd, events: PollFlags) -> Result<(), WireError> {
        let descriptor = descriptor.as_fd();
        loop {
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(WireError::Late(self.limit));
            }
            let timeout = Timespec::try_from(left).ok();
            match poll(
                &mut [PollFd::from_borrowed_fd(descriptor, events)],
                timeout.as_ref(),
            ) {
                Ok(1..) => return Ok(()),
                Ok(0) | Err(Errno::INTR) => {}
                Err(errno) => return Err(WireError::Socket(errno.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn message_passes_with_payload_and_descriptors() {
        let (near, far) = UnixStream::pair().unwrap();
        let sent = Message::new(request::SET_VRING_KICK, 3u64.to_le_bytes().to_vec());
        let beside = [near.as_fd(), far.as_fd()];
        sent.acknowledged()
            .send(near.as_fd(), &beside, LIMIT)
            .unwrap();
        let received = Inbox::default().wait(far.as_fd(), LIMIT).unwrap();
        assert_eq!((received.request, received.u64()), (12, Some(3)));
        assert!(received.wants_acknowledgement() && received.check_request().is_ok());
        assert_eq!(received.descriptors.len(), 2);
        assert!(received.answer(Vec::new()).answers(12));
        assert!(received.answer(Vec::new()).check_request().is_err());
    }

    #[test]
    fn message_that_arrives_byte_by_byte_is_whole_in_the_end() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::default();
        let bytes = [5u8, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 8];
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(inbox.has_begun(), at > 0);
            near.write_all(&[*byte]).unwrap();
            let message = inbox.receive(far.as_fd()).unwrap();
            assert_eq!(message.is_some(), at + 1 == bytes.len());
            if let Some(message) = message {
                assert_eq!((message.request, message.payload), (5, vec![7, 8]));
            }
        }
        assert!(!inbox.has_begun());
    }

    #[test]
    fn hanging_up_within_a_message_is_told_from_hanging_up_after_one() {
        for (bytes, cut) in [(&[][..], false), (&[1, 0], true)] {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(bytes).unwrap();
            drop(near);
            let error = Inbox::default().wait(far.as_fd(), LIMIT).unwrap_err();
            assert_eq!(matches!(error, WireError::Cut), cut, "{error}");
        }
    }

    #[test]
    fn absurd_length_is_refused_before_anything_is_allocated() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255])
            .unwrap();
        let error = Inbox::default().receive(far.as_fd()).unwrap_err();
        assert!(matches!(error, WireError::TooLong { request: 1, .. }));
    }

    #[test]
    fn peer_that_sends_or_takes_nothing_is_late() {
        let short = Duration::from_millis(20);
        let (near, far) = UnixStream::pair().unwrap();
        let silent = Inbox::default().wait(far.as_fd(), short).unwrap_err();
        assert!(matches!(silent, WireError::Late(_)), "{silent}");
        let message = Message::new(1, vec![0; MAX_PAYLOAD_LEN]);
        let full = loop {
            if let Err(error) = message.send(near.as_fd(), &[], short) {
                break error;
            }
        };
        assert!(matches!(full, WireError::Late(_)), "{full}");
    }

    /// No silent loss: a message of whose descriptors the kernel has dropped some is an error.
    #[test]
    fn message_with_more_descriptors_than_there_is_room_for_is_refused() {
        let (near, far) = UnixStream::pair().unwrap();
        let beside = vec![near.as_fd(); MAX_DESCRIPTORS + 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&beside)));
        let bytes = [21, VERSION, 0].map(u32::to_le_bytes).concat();
        let bytes = [IoSlice::new(&bytes)];
        sendmsg(&near, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
        let error = Inbox::default().receive(far.as_fd()).unwrap_err();
        assert!(matches!(error, WireError::TooManyDescriptors), "{error}");
    }

    #[test]
    fn wrong_flags_are_no_request() {
        for flags in [0, 2, VERSION | REPLY, VERSION | 16, u32::MAX] {
            let mut message = Message::new(1, Vec::new());
            message.flags = flags;
            assert!(message.check_request().is_err(), "{flags:#x}");
        }
    }
}
