//! What can go wrong with a request, and what ends the device.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gangplank_fuse::{DecodeError, EncodeError, Opcode};
use gangplank_vhost_user::client as vhost_user;
use rustix::io::Errno;

/// The driver's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon answered with an errno.
    #[error("{opcode}: {errno}")]
    Errno {
        /// What was asked.
        opcode: Opcode,
        /// The answer.
        errno: Errno,
    },
    /// No answer in time. The daemon keeps the request's memory until it gives it back.
    #[error("{opcode}: no answer within {limit:?}")]
    Late {
        /// What was asked.
        opcode: Opcode,
        /// How long was waited.
        limit: Duration,
    },
    /// As many requests are in flight as the queue holds, and none came back in time.
    #[error("{opcode}: queue {queue} was full for {limit:?}")]
    Full {
        /// What was to be asked.
        opcode: Opcode,
        /// The queue's number.
        queue: usize,
        /// How long was waited.
        limit: Duration,
    },
    /// The device is of no more use, nor is any session on it.
    #[error("the daemon at {} cannot be used any more", daemon.display())]
    Broken {
        /// The socket's path.
        daemon: PathBuf,
        /// What it did.
        #[source]
        source: Fault,
    },
    /// The answer is none.
    #[error("{opcode}: the answer makes no sense")]
    Reply {
        /// What was asked.
        opcode: Opcode,
        /// Why not.
        #[source]
        source: BadReply,
    },
    /// The request cannot be put on the wire.
    #[error("the request cannot be put on the wire")]
    Encode(#[from] EncodeError),
    /// There is no shared memory left for it.
    #[error("no shared memory is left for {len} bytes")]
    NoMemory {
        /// Bytes wanted.
        len: u64,
    },
    /// The device has no such queue.
    #[error("the device has {available} request queues, and not {wanted}")]
    NoQueue {
        /// Request queues wanted, or the number of the one wanted.
        wanted: usize,
        /// Request queues there are.
        available: usize,
    },
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] vhost_user::Error),
    /// The host refuses a resource.
    #[error("{what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The errno that the daemon answered with, if it is that.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Errno { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the connection is lost, so that no further call can succeed.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Connection(_))
    }
}

/// What ends a device: it was stopped, the daemon has gone, or it broke a rule of the virtqueue (virtio 1.2, 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The daemon has closed the connection.
    #[error("it has closed the connection")]
    HungUp,
    /// The driver was stopped on purpose.
    #[error("the driver was stopped")]
    Stopped,
    /// The used index claims more than was handed over.
    #[error(
        "on queue {queue} it claims to have used {claimed} requests where {in_flight} are in flight"
    )]
    UsedIndex {
        /// The queue's number.
        queue: usize,
        /// What the index says has come back.
        claimed: u16,
        /// What can have.
        in_flight: u16,
    },
    /// The used ring names something that was not handed over.
    #[error("on queue {queue} it gave back descriptor {head}, which it does not have")]
    UsedHead {
        /// The queue's number.
        queue: usize,
        /// What the used ring says.
        head: u32,
    },
    /// The used ring claims more bytes than there was room for.
    #[error(
        "on queue {queue} it claims to have written {len} bytes where there was room for {room}"
    )]
    UsedLength {
        /// The queue's number.
        queue: usize,
        /// What the used ring says, in bytes.
        len: u32,
        /// What there was room for, in bytes.
        room: u32,
    },
    /// The host cannot wait for the daemon.
    #[error("waiting for it failed: {0}")]
    Wait(Errno),
}

/// How an answer can make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    /// There is not even a header.
    #[error("{written} bytes hold no header")]
    NoHeader {
        /// Bytes that were written, by the used ring.
        written: u32,
    },
    /// Header and used ring tell different lengths.
    #[error("its header counts {len} bytes where {written} were written")]
    Length {
        /// Bytes by the header.
        len: u32,
        /// Bytes by the used ring.
        written: u32,
    },
    /// It answers another request.
    #[error("it answers request {found} instead of {expected}")]
    Unique {
        /// Number of the request.
        expected: u64,
        /// Number in the answer.
        found: u64,
    },
    /// Its error is none, or comes with data.
    #[error("it gives {error} as error, with {written} bytes in all")]
    Error {
        /// What should be zero or a negated errno.
        error: i32,
        /// Bytes of the answer.
        written: u32,
    },
    /// It claims to have done more than it was asked.
    #[error("it counts {counted} bytes where {asked} were asked for")]
    Count {
        /// What the answer counts.
        counted: u64,
        /// What was asked for.
        asked: u64,
    },
    /// A directory entry's name is none.
    #[error("a name of {len} bytes in it is empty or a path")]
    Name {
        /// Length of the name, in bytes.
        len: usize,
    },
    /// INIT agreed on nothing that can be spoken.
    #[error("it speaks FUSE {major}.{minor}")]
    Version {
        /// Major version.
        major: u32,
        /// Minor version.
        minor: u32,
    },
    /// Its contents are not what the operation answers with.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}
