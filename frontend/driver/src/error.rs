//! Errors of requests, and the faults that end a device.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gangplank_fuse::{DecodeError, EncodeError, Opcode};
use gangplank_vhost_user::client as vhost_user;
use rustix::io::Errno;

/// The driver's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon answered with an errno.
    #[error("{opcode}: {errno}")]
    Errno {
        /// The operation.
        opcode: Opcode,
        /// The errno.
        errno: Errno,
    },
    /// No reply in time. The daemon keeps the request's memory until it returns the request.
    #[error("{opcode}: the daemon did not answer within {limit:?}")]
    Late {
        /// The operation.
        opcode: Opcode,
        /// How long the call has waited.
        limit: Duration,
    },
    /// The queue is full of requests in flight, and none came back in time.
    #[error("{opcode}: queue {queue} was full for {limit:?}")]
    Full {
        /// The operation.
        opcode: Opcode,
        /// The queue's number.
        queue: usize,
        /// How long the call has waited.
        limit: Duration,
    },
    /// Neither the device nor any session on it can be used any more.
    #[error("the daemon at {} cannot be used any more", daemon.display())]
    Broken {
        /// The socket's path.
        daemon: PathBuf,
        /// What happened.
        #[source]
        source: Fault,
    },
    /// The reply is malformed.
    #[error("{opcode}: the reply is malformed")]
    Reply {
        /// The operation.
        opcode: Opcode,
        /// What is wrong with it.
        #[source]
        source: BadReply,
    },
    /// The request does not fit the wire format.
    #[error("the request does not fit the wire format")]
    Encode(#[from] EncodeError),
    /// The shared memory has no free range of this length.
    #[error("no shared memory is left for {len} bytes")]
    NoMemory {
        /// Bytes wanted.
        len: u64,
    },
    /// The device has no such queue.
    #[error("the device has {available} request queues, and not {wanted}")]
    NoQueue {
        /// Request queues wanted, or the number of the wanted queue.
        wanted: usize,
        /// Request queues that the device has.
        available: usize,
    },
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] vhost_user::Error),
    /// The host refused a resource.
    #[error("cannot {what}")]
    System {
        /// What the driver was doing.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The daemon's errno, if the daemon answered with one.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Errno { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the connection is lost, so that every further call fails.
    #[must_use]
    pub const fn is_fatal(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Connection(_))
    }

    /// Whether the daemon takes no rings of this size: it has refused SET_VRING_NUM, or closed the
    /// connection instead of acknowledging it. Of a daemon that acknowledges nothing, this is not
    /// known.
    #[must_use]
    pub fn is_ring_size(&self) -> bool {
        let Self::Connection(
            vhost_user::Error::Refused { message, .. } | vhost_user::Error::Gone { message, .. },
        ) = self
        else {
            return false;
        };
        *message == "SET_VRING_NUM"
    }
}

/// What ends a device: it was stopped, the daemon is gone, or it broke a rule of the virtqueue
/// (virtio 1.2, 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The daemon has closed the connection.
    #[error("it has closed the connection")]
    HungUp,
    /// The driver was stopped by [`crate::Driver::stop`].
    #[error("the driver was stopped")]
    Stopped,
    /// The used index claims more requests than are in flight.
    #[error(
        "on queue {queue} it claims to have used {claimed} requests where {in_flight} are in flight"
    )]
    UsedIndex {
        /// The queue's number.
        queue: usize,
        /// Requests returned, by the used index.
        claimed: u16,
        /// Requests in flight.
        in_flight: u16,
    },
    /// The used ring names a descriptor chain that the device does not have.
    #[error("on queue {queue} it gave back descriptor {head}, which it does not have")]
    UsedHead {
        /// The queue's number.
        queue: usize,
        /// The head that the used ring names.
        head: u32,
    },
    /// The used ring claims more bytes than the chain has room for.
    #[error(
        "on queue {queue} it claims to have written {len} bytes where there was room for {room}"
    )]
    UsedLength {
        /// The queue's number.
        queue: usize,
        /// Bytes written, by the used ring.
        len: u32,
        /// Bytes that the chain has room for.
        room: u32,
    },
    /// The host cannot wait for the daemon.
    #[error("waiting for it failed: {0}")]
    Wait(Errno),
}

/// What is wrong with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    /// It is too short for a header.
    #[error("{written} bytes are too few for a header")]
    NoHeader {
        /// Bytes written, by the used ring.
        written: u32,
    },
    /// Header and used ring disagree about the length.
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
        /// Number in the reply.
        found: u64,
    },
    /// Its error is not a negated errno, or comes with data.
    #[error("it gives {error} as error, with {written} bytes in all")]
    Error {
        /// The error: should be zero or a negated errno.
        error: i32,
        /// Bytes of the reply.
        written: u32,
    },
    /// It counts more bytes than the request asked for.
    #[error("it counts {counted} bytes where {asked} were asked for")]
    Count {
        /// Bytes that the reply counts.
        counted: u64,
        /// Bytes that the request asked for.
        asked: u64,
    },
    /// A directory entry's name is empty or has a slash in it.
    #[error("a name of {len} bytes in it is empty or a path")]
    Name {
        /// Length of the name, in bytes.
        len: usize,
    },
    /// INIT's reply has a version that this driver does not speak.
    #[error("it speaks FUSE {major}.{minor}")]
    Version {
        /// Major version.
        major: u32,
        /// Minor version.
        minor: u32,
    },
    /// Its payload does not decode.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}
