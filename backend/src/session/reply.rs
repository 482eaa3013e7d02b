//! Replies: a header, written last, and the payload behind it.

use std::io;

use gangplank_fuse::{Opcode, OutHeader, Unique};
use zerocopy::{Immutable, IntoBytes};

use crate::sys::buffers::{Reserved, Writer};
use crate::trace;

/// Bytes of the header at the start of each reply.
const HEADER_LEN: usize = size_of::<OutHeader>();

/// Reserved room for a reply's header, filled after the payload is written.
pub(super) enum ReplyHeader<'a> {
    /// The guest left room for a reply.
    Expected(Reserved<'a, HEADER_LEN>),
    /// The guest left no room, and the operation needs no reply (FORGET and the like).
    Absent,
}

impl<'a> ReplyHeader<'a> {
    /// Reserves the header at the start of `reply`. `None` if the guest left no room for a reply
    /// that the operation needs.
    pub(super) fn reserve(reply: &mut Writer<'a>, opcode: Opcode) -> Option<Self> {
        match (reply.reserve(), opcode.expects_reply()) {
            (Some(header), _) => Some(Self::Expected(header)),
            (None, false) => Some(Self::Absent),
            (None, true) => None,
        }
    }

    /// Writes the header for a payload of the given length, or for the error. Returns the length of
    /// the whole reply in bytes.
    pub(super) fn fill(self, unique: Unique, result: io::Result<usize>) -> usize {
        let Self::Expected(reserved) = self else {
            return 0;
        };
        let (header, payload) = match result {
            Ok(payload) => (OutHeader::ok(unique, payload), payload),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                trace::note_errno(errno);
                (OutHeader::error(unique, errno), 0)
            }
        };
        reserved.fill(zerocopy::transmute!(header));
        HEADER_LEN + payload
    }
}

/// Writes an error reply and returns its length in bytes: 0 if the guest left too little room.
pub(super) fn put_error(reply: &mut Writer<'_>, unique: Unique, errno: i32) -> usize {
    trace::note_errno(errno);
    if reply.write_value(&OutHeader::error(unique, errno)) {
        HEADER_LEN
    } else {
        0
    }
}

/// Appends a structure to the payload and returns its length in bytes.
///
/// # Errors
/// EIO: the guest left too little room.
pub(super) fn put<T: IntoBytes + Immutable>(
    reply: &mut Writer<'_>,
    value: &T,
) -> io::Result<usize> {
    trace::note_reply(value.as_bytes());
    if !reply.write_value(value) {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    Ok(size_of::<T>())
}

/// Appends bytes to the payload and returns their number.
///
/// # Errors
/// EIO: the guest left too little room.
pub(super) fn put_bytes(reply: &mut Writer<'_>, bytes: &[u8]) -> io::Result<usize> {
    if reply.remaining() < bytes.len() {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    Ok(reply.write(bytes))
}
