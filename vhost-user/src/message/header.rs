//! A message's header (vhost-user, "Header").

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Protocol version 1, in the two lowest bits of the flags.
pub const VERSION: u32 = 1;

/// Flag: the message is a reply.
pub const REPLY: u32 = 1 << 2;

/// Flag: the sender wants an acknowledgement of a request that has no reply of its own.
pub const NEED_REPLY: u32 = 1 << 3;

/// Bytes of a header.
pub const HEADER_LEN: usize = size_of::<Header>();

/// The header of every message, in the host's byte order. Any value can be sent and received.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// The message's number (vhost-user, "Front-end message types").
    pub request: u32,
    /// Version and flags; the others are reserved.
    pub flags: u32,
    /// Bytes of the payload, which follows.
    pub len: u32,
}

const _: () = assert!(HEADER_LEN == 12);

impl Header {
    /// Its bytes, followed by `payload`, whatever length the header announces.
    #[must_use]
    pub fn with_payload(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = self.as_bytes().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }
}
