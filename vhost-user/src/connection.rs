//! The frontend's end of a connection: a request, and the reply to it.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::Deadline;
use crate::message::{Inbox, Message, MessageError};

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request could not be sent, or its reply not be received.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The peer acknowledged that it failed.
    #[error("the peer refused the request")]
    Refused,
    /// The peer sent something else than the reply to the request.
    #[error("the peer sent message {request} with {len} bytes in place of the reply")]
    WrongReply {
        /// Number of the message that came.
        request: u32,
        /// Bytes of its payload.
        len: usize,
    },
}

impl CallError {
    /// An error for a reply that is not what it should be.
    #[must_use]
    pub fn wrong_reply(reply: &Message) -> Self {
        Self::WrongReply {
            request: reply.request,
            len: reply.payload.len(),
        }
    }
}

/// A connected socket on which one request is under way at a time.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    inbox: Inbox,
}

impl Connection {
    /// Uses a connected socket; whether it blocks does not matter.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            inbox: Inbox::default(),
        }
    }

    /// The socket.
    #[must_use]
    pub const fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends a request, which the peer has to take within `limit`.
    ///
    /// # Errors
    /// As [`Message::send`].
    pub fn send(
        &self,
        request: &Message,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), MessageError> {
        request.send(self.socket.as_fd(), descriptors, Deadline::after(limit))
    }

    /// Waits for the reply to `request` for `limit`.
    ///
    /// # Errors
    /// [`CallError::Message`]; [`CallError::WrongReply`] if another message comes.
    pub fn reply(&mut self, request: &Message, limit: Duration) -> Result<Message, CallError> {
        let deadline = Deadline::after(limit);
        let reply = self.inbox.wait(self.socket.as_fd(), deadline)?;
        match reply.is_reply_to(request.request) {
            true => Ok(reply),
            false => Err(CallError::wrong_reply(&reply)),
        }
    }
}

/// Reads an acknowledgement, or another reply that is 0 for success.
///
/// # Errors
/// [`CallError::Refused`] for another number, [`CallError::WrongReply`] for another length.
pub fn check_acknowledgement(reply: &Message) -> Result<(), CallError> {
    match reply.u64() {
        Some(0) => Ok(()),
        Some(_) => Err(CallError::Refused),
        None => Err(CallError::wrong_reply(reply)),
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
