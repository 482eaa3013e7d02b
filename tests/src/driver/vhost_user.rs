//! The frontend's end of a vhost-user socket: messages as bytes, so that a test can send wrong ones too.
//!
//! ```text
//! [request | flags | payload length] payload          descriptors beside it (SCM_RIGHTS)
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::error::{Error, Result};

/// Message numbers (vhost-user, "Front-end message types").
pub mod message {
    #![allow(missing_docs)] // the specification's names, without VHOST_USER_
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Protocol version 1, in the flags of every message.
pub const VERSION: u32 = 1;

/// The message is an answer.
pub const REPLY: u32 = 1 << 2;

/// The message wants an answer although it has none of its own (REPLY_ACK).
pub const NEED_REPLY: u32 = 1 << 3;

/// `VHOST_USER_F_PROTOCOL_FEATURES`, among the virtio features.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol feature REPLY_ACK.
pub const PROTOCOL_REPLY_ACK: u64 = 1 << 3;

/// Request, flags, payload length: 4 bytes each.
const HEADER_LEN: usize = 12;

/// How long an answer may take.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A connected socket.
#[derive(Debug)]
pub struct Peer {
    socket: UnixStream,
    need_reply: bool,
}

/// One message from the daemon.
#[derive(Debug)]
pub struct Answer {
    /// Its number.
    pub request: u32,
    /// Its flags.
    pub flags: u32,
    /// What follows the header.
    pub payload: Vec<u8>,
}

impl Peer {
    /// Connects to the daemon's socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Self> {
        let socket = UnixStream::connect(path).map_err(|source| Error::System {
            what: "connecting to the daemon",
            source,
        })?;
        Self::new(socket)
    }

    /// Uses a socket that is connected already.
    ///
    /// # Errors
    /// A deadline cannot be set on it.
    pub fn new(socket: UnixStream) -> Result<Self> {
        socket
            .set_read_timeout(Some(ANSWER_LIMIT))
            .and_then(|()| socket.set_write_timeout(Some(ANSWER_LIMIT)))
            .map_err(|source| Error::System {
                what: "setting a deadline for the socket",
                source,
            })?;
        Ok(Self {
            socket,
            need_reply: false,
        })
    }

    /// From now on, messages without an answer of their own ask for one, once REPLY_ACK is agreed on.
    pub fn set_need_reply(&mut self) {
        self.need_reply = true;
    }

    /// The socket itself.
    #[must_use]
    pub const fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends a message that has no answer of its own, and waits for its acknowledgement where that was agreed on.
    ///
    /// # Errors
    /// The daemon refuses it, or closes the connection.
    pub fn tell(&self, request: u32, payload: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let flags = if self.need_reply { NEED_REPLY } else { 0 };
        self.send(request, VERSION | flags, payload, descriptors)?;
        if !self.need_reply {
            return Ok(());
        }
        match u64_of(&self.answer(request)?) {
            Some(0) => Ok(()),
            code => Err(Error::Refused {
                request,
                code: code.unwrap_or(u64::MAX),
            }),
        }
    }

    /// Sends a message that has an answer, and returns the answer's payload.
    ///
    /// # Errors
    /// The daemon closes the connection, or answers another question.
    pub fn ask(&self, request: u32, payload: &[u8]) -> Result<Vec<u8>> {
        self.send(request, VERSION, payload, &[])?;
        self.answer(request)
    }

    /// As [`Peer::ask`], for an answer of 8 bytes.
    ///
    /// # Errors
    /// As [`Peer::ask`].
    pub fn ask_u64(&self, request: u32) -> Result<u64> {
        let payload = self.ask(request, &[])?;
        u64_of(&payload).ok_or(Error::WrongAnswer {
            request,
            answer: request,
            len: payload.len(),
        })
    }

    /// Sends any message.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<()> {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.send_bytes(&encode(request, flags, len, payload), descriptors)
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let mut sent = 0;
        while let Some(rest @ [_, ..]) = bytes.get(sent..) {
            let part = sendmsg(
                &self.socket,
                &[IoSlice::new(rest)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            );
            sent += part.map_err(|errno| match errno {
                rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => {
                    Error::HungUp("a message was being sent")
                }
                errno => Error::system("sending a vhost-user message")(errno),
            })?;
            ancillary.clear();
        }
        Ok(())
    }

    /// Receives one message.
    ///
    /// # Errors
    /// Nothing comes in time, or the connection is closed.
    pub fn receive(&self) -> Result<Answer> {
        let mut header = [0; HEADER_LEN];
        self.fill(&mut header)?;
        let word = |at: usize| {
            let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |word| u32::from_le_bytes(*word))
        };
        // A length that a broken daemon invents must not fill this process's memory.
        let len = usize::try_from(word(8))
            .unwrap_or(usize::MAX)
            .min(64 * 1024);
        let mut payload = vec![0; len];
        self.fill(&mut payload)?;
        Ok(Answer {
            request: word(0),
            flags: word(4),
            payload,
        })
    }

    /// Waits until the daemon closes the connection; what it still sends is read and forgotten.
    ///
    /// # Errors
    /// It does not close in time.
    pub fn wait_for_hang_up(&self) -> Result<()> {
        loop {
            match self.receive() {
                Ok(_) => {}
                Err(Error::HungUp(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn answer(&self, request: u32) -> Result<Vec<u8>> {
        let answer = self.receive()?;
        if answer.request == request && answer.flags & REPLY != 0 {
            return Ok(answer.payload);
        }
        Err(Error::WrongAnswer {
            request,
            answer: answer.request,
            len: answer.payload.len(),
        })
    }

    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        while let Some(rest @ [_, ..]) = bytes.get_mut(filled..) {
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                self.socket.as_fd(),
                &mut [IoSliceMut::new(rest)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            );
            for control in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = control {
                    descriptors.for_each(drop::<OwnedFd>);
                }
            }
            match received {
                Ok(received) if received.bytes == 0 => {
                    return Err(Error::HungUp("an answer was awaited"));
                }
                Ok(received) => filled += received.bytes,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(Error::Late {
                        what: "a vhost-user answer was awaited",
                        limit: ANSWER_LIMIT,
                    });
                }
                Err(rustix::io::Errno::CONNRESET) => {
                    return Err(Error::HungUp("an answer was awaited"));
                }
                Err(errno) => {
                    return Err(Error::System {
                        what: "receiving a vhost-user message",
                        source: io::Error::from(errno),
                    });
                }
            }
        }
        Ok(())
    }
}

/// A message's bytes, with any length in its header.
#[must_use]
pub fn encode(request: u32, flags: u32, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    for word in [request, flags, len] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// Puts words of 8 bytes after each other.
#[must_use]
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A ring's number and a value of 4 bytes: the payload of SET_VRING_NUM and its like.
#[must_use]
pub fn ring_state(ring: u32, value: u32) -> Vec<u8> {
    [ring.to_le_bytes(), value.to_le_bytes()].concat()
}

/// Payload of SET_VRING_ADDR for a ring whose parts lie at these user addresses.
#[must_use]
pub fn ring_addresses(ring: u32, descriptors: u64, used: u64, available: u64, log: u64) -> Vec<u8> {
    let mut payload = ring_state(ring, 0);
    payload.extend(words(&[descriptors, used, available, log]));
    payload
}

/// Payload of SET_MEM_TABLE: each region is guest address, size, user address, offset in its file.
#[must_use]
pub fn memory_table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut payload = words(&[regions.len() as u64]);
    payload.extend(regions.iter().flat_map(|region| words(region)));
    payload
}

fn u64_of(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_le_bytes)
}
