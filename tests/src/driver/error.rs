//! Errors between a test's driver and the daemon.

use std::io;
use std::time::Duration;

use gangplank_fuse::{DecodeError, EncodeError};
use rustix::io::Errno;

/// Why a request or message failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon answered the request with an errno.
    #[error("the daemon answered with {0}")]
    Errno(Errno),
    /// A wait reached its limit.
    #[error("nothing came within {limit:?} while {what}")]
    Late {
        /// What the driver waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The daemon returned a chain without a reply in it.
    #[error("the chain came back with {used} bytes written, which is no reply")]
    NoReply {
        /// The length in the used ring.
        used: u32,
    },
    /// The daemon returned a chain that it did not have, or claims more bytes than the chain has
    /// room for.
    #[error("the used ring holds what cannot be: head {head}, {len} bytes")]
    BadUsed {
        /// Head of the chain.
        head: u32,
        /// The claimed number of bytes written.
        len: u32,
    },
    /// A reply that cannot be decoded.
    #[error("a reply cannot be decoded")]
    Decode(#[from] DecodeError),
    /// A request that cannot be encoded.
    #[error("a request cannot be encoded")]
    Encode(#[from] EncodeError),
    /// The reply carries another request's number.
    #[error("the reply to request {expected} carries the number {found}")]
    WrongUnique {
        /// The number of the request.
        expected: u64,
        /// The number in the reply.
        found: u64,
    },
    /// The daemon answered a vhost-user message with an error, by way of REPLY_ACK.
    #[error("the daemon refused vhost-user message {request}: {code}")]
    Refused {
        /// The message's number.
        request: u32,
        /// The daemon's answer, not zero.
        code: u64,
    },
    /// The device reports that it needs a reset.
    #[error("the device needs a reset")]
    NeedsReset,
    /// The daemon closed the connection.
    #[error("the daemon closed the connection while {0}")]
    HungUp(&'static str),
    /// The reply to a vhost-user message has the wrong number or length.
    #[error("message {request} was answered with message {answer} of {len} bytes")]
    WrongAnswer {
        /// The message's number.
        request: u32,
        /// The answer's number.
        answer: u32,
        /// The answer's length.
        len: usize,
    },
    /// There is no memory or no descriptor left for another request.
    #[error("no {0} left for another request")]
    Exhausted(&'static str),
    /// Shared memory or a descriptor failed.
    #[error("{what}")]
    System {
        /// The operation.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The driver's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failed system call.
    pub fn system(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System {
            what,
            source: errno.into(),
        }
    }

    /// The errno of the daemon's reply, if there is one.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Errno(errno) => Some(*errno),
            _ => None,
        }
    }
}
