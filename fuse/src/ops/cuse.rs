//! CUSE_INIT: the session of a character device in user space.

use bitflags::bitflags;

/// Most bytes of device information in the reply (`CUSE_INIT_INFO_MAX`).
pub const CUSE_INIT_INFO_MAX: usize = 4096;

wire_struct! {
    /// The kernel's CUSE_INIT.
    CuseInitIn = "cuse_init_in", 16 bytes {
        /// Major version, 7.
        major: u32 => 0,
        /// Minor version.
        minor: u32 => 4,
        /// Zero.
        unused: u32 => 8,
        /// [`CuseInitFlags`].
        flags: u32 => 12,
    }
}

bitflags! {
    /// Features of such a device (`CUSE_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct CuseInitFlags: u32 {
        /// Unrestricted ioctls.
        const UNRESTRICTED_IOCTL = 1 << 0;
    }
}

wire_struct! {
    /// The server's answer; the device's information, NUL-terminated `KEY=value` strings, follows.
    CuseInitOut = "cuse_init_out", 72 bytes {
        /// Major version, 7.
        major: u32 => 0,
        /// Minor version.
        minor: u32 => 4,
        /// Zero.
        unused: u32 => 8,
        /// [`CuseInitFlags`].
        flags: u32 => 12,
        /// Largest READ, in bytes.
        max_read: u32 => 16,
        /// Largest WRITE, in bytes.
        max_write: u32 => 20,
        /// The device's major number.
        dev_major: u32 => 24,
        /// The device's minor number.
        dev_minor: u32 => 28,
        /// Zero.
        spare: [u32; 10] => 32,
    }
}
