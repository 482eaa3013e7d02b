//! Replies: a header in header, written last, and what follows it.

use std::io;

use gangplank_fuse::{Opcode, OutHeader, Unique};
use zerocopy::{Immutable, IntoBytes};

use crate::sys::buffers::{Reserved, Writer};

/// Bytes of the header that opens each reply.
const HEADER_LEN: usize = size_of::<OutHeader>();

/// The room for a reply's header, to be filled when all that follows it is written.
pub(super) enum ReplyHeader<'a> {
    /// The guest waits for a reply.
    Expected(Reserved<'a, HEADER_LEN>),
    /// The operation has no reply, or one only if there is room for it and something to say.
    Absent,
}

impl<'a> ReplyHeader<'a> {
    /// Takes the header's room off the header of `reply`; `None` if the guest left none although it must.
    pub(super) fn reserve(reply: &mut Writer<'a>, opcode: Opcode) -> Option<Self> {
        match (reply.reserve(), opcode.expects_reply()) {
            (Some(header), _) => Some(Self::Expected(header)),
            (None, false) => Some(Self::Absent),
            (None, true) => None,
        }
    }

    /// Writes the header for a payload of the given length, or for the error, and returns the length of the whole reply.
    pub(super) fn fill(self, unique: Unique, result: io::Result<usize>) -> usize {
        let Self::Expected(reserved) = self else {
            return 0;
        };
        let (header, payload) = match result {
            Ok(payload) => (OutHeader::ok(unique, payload), payload),
            Err(error) => (
                OutHeader::error(unique, error.raw_os_error().unwrap_or(libc::EIO)),
                0,
            ),
        };
        reserved.fill(zerocopy::transmute!(header));
        HEADER_LEN + payload
    }
}

/// Writes an error reply, if there is room for one, and returns its length.
pub(super) fn put_error(reply: &mut Writer<'_>, unique: Unique, errno: i32) -> usize {
    if reply.write_value(&OutHeader::error(unique, errno)) {
        HEADER_LEN
    } else {
        0
    }
}

/// Writes a structure behind the header.
///
/// # Errors
/// EIO: the guest left too little room for it.
pub(super) fn put<T: IntoBytes + Immutable>(
    reply: &mut Writer<'_>,
    value: &T,
) -> io::Result<usize> {
    if !reply.write_value(value) {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    Ok(size_of::<T>())
}

/// Writes bytes behind the header.
///
/// # Errors
/// EIO: the guest left too little room for them.
pub(super) fn put_bytes(reply: &mut Writer<'_>, bytes: &[u8]) -> io::Result<usize> {
    if reply.remaining() < bytes.len() {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    Ok(reply.write(bytes))
}
