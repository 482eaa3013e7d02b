//! The two headers: one opens every request, one opens every reply and notification.

use crate::{NodeId, Opcode, Unique, UnknownOpcode};

/// User or group id that stands for "cannot be mapped" on an id-mapped mount
/// (`FUSE_INVALID_UIDGID`, 7.41).
pub const INVALID_UIDGID: u32 = u32::MAX;

wire_struct! {
    /// Opens every request.
    InHeader = "fuse_in_header", 40 bytes {
        /// Bytes of the whole request, this header, data and extensions included.
        len: u32 => 0,
        /// What is asked; see [`InHeader::opcode`].
        opcode: u32 => 4,
        /// Number of the request; see [`InHeader::unique`].
        unique: u64 => 8,
        /// The node it is about; see [`InHeader::node`]. Zero where the operation has none.
        nodeid: u64 => 16,
        /// Caller's file-system user id, in the guest.
        uid: u32 => 24,
        /// Caller's file-system group id, in the guest.
        gid: u32 => 28,
        /// Caller's thread id, in the guest.
        pid: u32 => 32,
        /// Length of the extensions at the request's end, in units of 8 bytes (7.38; zero before).
        total_extlen: u16 => 36,
        /// Zero.
        padding: u16 => 38,
    }
}

impl InHeader {
    /// What is asked.
    ///
    /// # Errors
    /// [`UnknownOpcode`] for a number that 7.45 does not define.
    pub fn opcode(&self) -> Result<Opcode, UnknownOpcode> {
        Opcode::try_from(self.opcode)
    }

    /// Number of the request.
    #[must_use]
    pub const fn unique(&self) -> Unique {
        Unique::new(self.unique)
    }

    /// The node the request is about.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        NodeId::new(self.nodeid)
    }
}

wire_struct! {
    /// Opens every reply, and every notification with `unique` zero and the notification's code in
    /// `error`.
    OutHeader = "fuse_out_header", 16 bytes {
        /// Bytes of the whole reply, this header included.
        len: u32 => 0,
        /// Zero or a negated errno above -512; in a notification its positive code.
        error: i32 => 4,
        /// The request's number.
        unique: u64 => 8,
    }
}

impl OutHeader {
    /// Header of a reply that succeeded, followed by `payload_len` bytes.
    ///
    /// A length beyond the protocol's 4 GiB saturates; no buffer that a guest offers can hold such
    /// a reply.
    #[must_use]
    pub fn ok(unique: Unique, payload_len: usize) -> Self {
        let len = payload_len.saturating_add(size_of::<Self>());
        Self {
            len: u32::try_from(len).unwrap_or(u32::MAX),
            error: 0,
            unique: unique.get(),
        }
    }

    /// The whole reply of a request that failed. `errno` is the positive number, such as 2 for
    /// ENOENT.
    #[must_use]
    pub fn error(unique: Unique, errno: i32) -> Self {
        Self {
            len: 16,
            error: errno.saturating_abs().saturating_neg(),
            unique: unique.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ok_counts_header_and_payload() {
        let header = OutHeader::ok(Unique::new(9), 120);
        assert_eq!(
            header,
            OutHeader {
                len: 136,
                error: 0,
                unique: 9
            }
        );
    }

    #[test]
    fn error_is_negative_whichever_sign_it_is_given() {
        assert_eq!(OutHeader::error(Unique::new(3), 2).error, -2);
        assert_eq!(OutHeader::error(Unique::new(3), -2).error, -2);
        assert_eq!(OutHeader::error(Unique::new(3), i32::MIN).error, -i32::MAX);
        assert_eq!(OutHeader::error(Unique::new(3), 2).len, 16);
    }
}
