//! Why a message cannot be received or sent.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use super::MAX_PAYLOAD_LEN;

/// Why a message cannot be received from a peer, or sent to it.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The peer closed the connection between two messages.
    #[error("the peer has hung up")]
    HungUp,
    /// The peer closed the connection and left messages unread.
    #[error("the peer has hung up and left messages unread")]
    Reset,
    /// The peer closed the connection within a message.
    #[error("the peer has hung up within a message")]
    Cut,
    /// The header announces a longer payload than any message has.
    #[error("message {request} announces a payload of {len} bytes, more than {MAX_PAYLOAD_LEN}")]
    TooLong {
        /// The message's number.
        request: u32,
        /// The announced length.
        len: usize,
    },
    /// The message carries more descriptors than the receiver takes, or than the process may open.
    #[error(
        "a message carries more than {limit} descriptors, or more than this process may have open"
    )]
    TooManyDescriptors {
        /// What the receiver takes.
        limit: usize,
    },
    /// The flags are not those of a request.
    #[error("message {request} has the flags {flags:#x}")]
    Flags {
        /// The message's number.
        request: u32,
        /// Its flags.
        flags: u32,
    },
    /// The peer did not take or send the rest of a message in time.
    #[error("the peer did not go on within {0:?}")]
    Late(Duration),
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[from] io::Error),
}

impl MessageError {
    /// Whether the peer has closed the connection, or the socket is broken: no message passes any
    /// more.
    #[must_use]
    pub const fn is_end(&self) -> bool {
        matches!(
            self,
            Self::HungUp | Self::Reset | Self::Cut | Self::Socket(_)
        )
    }
}

impl From<Errno> for MessageError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE => Self::HungUp,
            Errno::CONNRESET => Self::Reset,
            errno => Self::Socket(errno.into()),
        }
    }
}
