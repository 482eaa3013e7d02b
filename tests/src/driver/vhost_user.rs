//! The frontend's end of a vhost-user socket, which can send anything: any header, any length, any
//! descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use gangplank_vhost_user::message::payload::{self, from_u64};
use gangplank_vhost_user::message::{
    Header, Inbox, MemoryRegion, Message, MessageError, ProtocolFeatures, VringAddr,
};
use gangplank_vhost_user::{Deadline, descriptors, feature};

pub use gangplank_vhost_user::message::payload::ring_state;
pub use gangplank_vhost_user::message::{NEED_REPLY, REPLY, VERSION};

use super::error::{Error, Result};

/// Request numbers, as numbers: a test may send others (vhost-user, "Front-end message types").
pub mod message {
    use gangplank_vhost_user::message::FrontendReq;

    macro_rules! numbers {
        ($($name:ident)*) => {
            $(
                #[doc = concat!("VHOST_USER_", stringify!($name))]
                pub const $name: u32 = FrontendReq::$name as u32;
            )*
        };
    }
    numbers! {
        GET_FEATURES SET_FEATURES SET_OWNER SET_MEM_TABLE
        SET_VRING_NUM SET_VRING_ADDR SET_VRING_BASE GET_VRING_BASE
        SET_VRING_KICK SET_VRING_CALL SET_VRING_ERR SET_VRING_ENABLE
        GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM SET_BACKEND_REQ_FD
        GET_CONFIG RESET_DEVICE GET_MAX_MEM_SLOTS ADD_MEM_REG REM_MEM_REG
        SET_DEVICE_STATE_FD CHECK_DEVICE_STATE SET_LOG_BASE
    }
}

/// `VHOST_USER_F_PROTOCOL_FEATURES`, among the virtio features.
pub const F_PROTOCOL_FEATURES: u64 = feature::PROTOCOL_FEATURES;

/// Protocol feature REPLY_ACK.
pub const PROTOCOL_REPLY_ACK: u64 = ProtocolFeatures::REPLY_ACK.bits();

/// Time that the daemon has for an answer, and to take a message, on a busy machine.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// A connected socket.
#[derive(Debug)]
pub struct Peer {
    socket: UnixStream,
    need_reply: bool,
}

impl Peer {
    /// Connects to the daemon's socket.
    ///
    /// # Errors
    /// No process listens there.
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

    /// Has messages without an answer of their own ask for one from now on. REPLY_ACK has to be
    /// agreed on.
    pub fn set_need_reply(&mut self) {
        self.need_reply = true;
    }

    /// The socket itself.
    #[must_use]
    pub const fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends a message that has no answer of its own, and waits for the acknowledgement if that was
    /// agreed on.
    ///
    /// # Errors
    /// The daemon refuses it, or closes the connection.
    pub fn tell(&self, request: u32, payload: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let flags = if self.need_reply { NEED_REPLY } else { 0 };
        self.send(request, VERSION | flags, payload, descriptors)?;
        if !self.need_reply {
            return Ok(());
        }
        match payload::to_u64(&self.answer(request)?) {
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
        payload::to_u64(&payload).ok_or(Error::WrongAnswer {
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
    /// The connection is closed, or the daemon does not take them in time.
    pub fn send_bytes(&self, bytes: &[u8], beside: &[BorrowedFd<'_>]) -> Result<()> {
        let deadline = Deadline::after(ANSWER_LIMIT);
        let sent = descriptors::send_all(self.socket.as_fd(), bytes, beside, deadline);
        sent.map_err(|error| failed(error, "a vhost-user message was being sent"))
    }

    /// Receives one message. The descriptors beside it are closed with it.
    ///
    /// # Errors
    /// No message comes in time, or the connection is closed.
    pub fn receive(&self) -> Result<Message> {
        let deadline = Deadline::after(ANSWER_LIMIT);
        let received = Inbox::default().wait(self.socket.as_fd(), deadline);
        received.map_err(|error| failed(error, "a vhost-user answer was awaited"))
    }

    /// Waits until the daemon closes the connection. Messages that still come are discarded.
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
        if answer.is_reply_to(request) {
            return Ok(answer.payload);
        }
        Err(Error::WrongAnswer {
            request,
            answer: answer.request,
            len: answer.payload.len(),
        })
    }
}

fn failed(error: MessageError, what: &'static str) -> Error {
    match error {
        MessageError::HungUp | MessageError::Reset | MessageError::Cut => Error::HungUp(what),
        MessageError::Late(limit) => Error::Late { what, limit },
        error => Error::System {
            what,
            source: io::Error::other(error),
        },
    }
}

/// A message's bytes, with any length in its header.
#[must_use]
pub fn encode(request: u32, flags: u32, len: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        request,
        flags,
        len,
    };
    header.with_payload(payload)
}

/// Words of 8 bytes, one after another.
#[must_use]
pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().copied().flat_map(from_u64).collect()
}

/// Payload of SET_VRING_ADDR for a ring whose parts lie at these user addresses.
#[must_use]
pub fn ring_addresses(ring: u32, descriptors: u64, used: u64, available: u64, log: u64) -> Vec<u8> {
    payload::encode(&VringAddr {
        index: ring,
        flags: 0,
        descriptor: descriptors,
        used,
        available,
        log,
    })
}

/// Payload of SET_MEM_TABLE: each region is guest address, size, user address, offset in its file.
#[must_use]
pub fn memory_table(regions: &[[u64; 4]]) -> Vec<u8> {
    let regions = regions.iter();
    let table: Vec<_> = regions
        .map(|[guest, len, user, offset]| MemoryRegion::new(*guest, *len, *user, *offset))
        .collect();
    payload::memory_table(&table)
}
