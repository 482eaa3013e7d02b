//! What INIT agreed on that changes the layout of later requests.

use crate::{InitFlags, KERNEL_MINOR_VERSION};

/// What INIT agreed on that changes the layout of later requests.
///
/// [`Dialect::default`] holds before INIT, whose own layouts differ in length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect {
    /// The smaller of both sides' minor versions. Below 38 the header's `total_extlen` was padding.
    pub minor: u32,
    /// SETXATTR carries `setxattr_flags` (`FUSE_SETXATTR_EXT`, 7.33): 16 bytes before the name
    /// instead of 8.
    pub setxattr_ext: bool,
    /// Requests that make inodes carry a security context (`FUSE_SECURITY_CTX`, 7.36). Linux 5.17
    /// to 6.2 put it after the last name without counting it in `total_extlen`, which came with
    /// Linux 6.3.
    pub security_ctx: bool,
}

impl Default for Dialect {
    fn default() -> Self {
        Self {
            minor: KERNEL_MINOR_VERSION,
            setxattr_ext: false,
            security_ctx: false,
        }
    }
}

impl Dialect {
    /// The dialect after an INIT that agreed on `minor` and on `flags` (offered by the client *and*
    /// taken by the server).
    #[must_use]
    pub fn negotiated(minor: u32, flags: InitFlags) -> Self {
        Self {
            minor: minor.min(KERNEL_MINOR_VERSION),
            setxattr_ext: flags.contains(InitFlags::SETXATTR_EXT),
            security_ctx: flags.contains(InitFlags::SECURITY_CTX),
        }
    }
}
