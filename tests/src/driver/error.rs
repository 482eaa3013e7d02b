//! What can go wrong between a test's driver and the daemon.

use std::io;
use std::time::Duration;

use gangplank_fuse::{DecodeError, EncodeError};
use rustix::io::Errno;

/// Why something the driver asked for did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon answered the request with an errno.
    #[error("the daemon answered with {0}")]
    Errno(Errno),
    /// The time for it is over.
    #[error("nothing came within {limit:?} while {what}")]
    Late {
        /// What was being waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The daemon gave a chain back without a reply in it.
    #[error("the chain came back with {used} bytes written, which is no reply")]
    NoReply {
        /// The length in the used ring.
        used: u32,
    },
    /// The daemon gave something back that was not handed to it, or claims more than there was room
    /// for.
    #[error("the used ring holds what cannot be: head {head}, {len} bytes")]
    BadUsed {
        /// Head of the chain.
        head: u32,
        /// Bytes it claims to have written.
        len: u32,
    },
    /// A reply that is none.
    #[error("a reply cannot be decoded")]
    Decode(#[from] DecodeError),
    /// A request that cannot be put on the wire.
    #[error("a request cannot be encoded")]
    Encode(#[from] EncodeError),
    /// The reply carries another request's number.
    #[error("the reply to request {expected} carries the number {found}")]
    WrongUnique {
        /// Of the request.
        expected: u64,
        /// In the reply.
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
    /// The device says that it needs a reset.
    #[error("the device needs a reset")]
    NeedsReset,
    /// The daemon closed the connection.
    #[error("the daemon closed the connection while {0}")]
    HungUp(&'static str),
    /// The reply to a vhost-user message is not one.
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
        /// What was being done.
        what: &'static str,
        /// Why it failed.
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

    /// The errno the daemon answered with, if it is that.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Errno(errno) => Some(*errno),
            _ => None,
        }
    }
}
