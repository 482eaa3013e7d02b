//! SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR: extended attributes.
//!
//! GETXATTR and LISTXATTR with size zero ask for the length and are answered with a
//! [`GetxattrOut`]; otherwise the reply is the value, or the names each with its NUL. REMOVEXATTR
//! has a name alone.

use bitflags::bitflags;
use zerocopy::IntoBytes;

use crate::cursor::Cursor;
use crate::{DecodeError, Dialect};

wire_struct! {
    /// SETXATTR; the attribute's name and `size` bytes of value follow. Without
    /// `Dialect::setxattr_ext` only the first 8 bytes are on the wire.
    SetxattrIn = "fuse_setxattr_in", 16 bytes {
        /// Length of the value, in bytes.
        size: u32 => 0,
        /// `XATTR_CREATE`, `XATTR_REPLACE` or neither.
        flags: u32 => 4,
        /// [`SetxattrFlags`] (7.33).
        setxattr_flags: u32 => 8,
        /// Zero.
        padding: u32 => 12,
    }
}

impl SetxattrIn {
    /// What is on the wire without `Dialect::setxattr_ext` (`FUSE_COMPAT_SETXATTR_IN_SIZE`).
    pub const COMPAT_SIZE: usize = 8;

    pub(crate) fn decode(cursor: &mut Cursor<'_>, dialect: Dialect) -> Result<Self, DecodeError> {
        if dialect.setxattr_ext {
            return cursor.fixed();
        }
        let [size, flags] = cursor.fixed()?;
        Ok(Self {
            size,
            flags,
            ..Self::default()
        })
    }

    pub(crate) fn encode(&self, dialect: Dialect, out: &mut Vec<u8>) {
        if dialect.setxattr_ext {
            out.extend_from_slice(self.as_bytes());
        } else {
            out.extend_from_slice([self.size, self.flags].as_bytes());
        }
    }
}

bitflags! {
    /// What SETXATTR does besides (`FUSE_SETXATTR_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct SetxattrFlags: u32 {
        /// Setting `system.posix_acl_access` clears the set-group-id bit (7.33).
        const ACL_KILL_SGID = 1 << 0;
    }
}

wire_struct! {
    /// GETXATTR, the attribute's name following, or LISTXATTR.
    GetxattrIn = "fuse_getxattr_in", 8 bytes {
        /// Most bytes wanted; zero asks for the length.
        size: u32 => 0,
        /// Zero.
        padding: u32 => 4,
    }
}

wire_struct! {
    /// Reply of GETXATTR and LISTXATTR that asked for the length.
    GetxattrOut = "fuse_getxattr_out", 8 bytes {
        /// Length, in bytes.
        size: u32 => 0,
        /// Zero.
        padding: u32 => 4,
    }
}
