//! IOCTL: an ioctl(2) passed on.

use bitflags::bitflags;

/// Most entries of `in_iovs` and `out_iovs` together (`FUSE_IOCTL_MAX_IOV`).
pub const IOCTL_MAX_IOV: u32 = 256;

wire_struct! {
    /// IOCTL; `in_size` bytes of data follow, left in the transport.
    IoctlIn = "fuse_ioctl_in", 32 bytes {
        /// The open file or directory.
        fh: u64 => 0,
        /// [`IoctlFlags`].
        flags: u32 => 8,
        /// The ioctl's number.
        cmd: u32 => 12,
        /// Its argument: an address in the caller's memory, or a plain number.
        arg: u64 => 16,
        /// Bytes that follow.
        in_size: u32 => 24,
        /// Most bytes of data in the reply.
        out_size: u32 => 28,
    }
}

bitflags! {
    /// What kind of ioctl (`FUSE_IOCTL_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct IoctlFlags: u32 {
        /// A 32-bit caller on a 64-bit kernel.
        const COMPAT = 1 << 0;
        /// Not bound to what the ioctl's number says of sizes; may be retried with vectors.
        const UNRESTRICTED = 1 << 1;
        /// In the reply: send again with these vectors.
        const RETRY = 1 << 2;
        /// A 32-bit caller.
        const BIT32 = 1 << 3;
        /// On a directory (7.18).
        const DIR = 1 << 4;
        /// An x32 caller, with 64-bit times (7.30).
        const COMPAT_X32 = 1 << 5;
    }
}

wire_struct! {
    /// A range of the caller's memory, in a reply that asks for a retry (7.16).
    IoctlIovec = "fuse_ioctl_iovec", 16 bytes {
        /// Address.
        base: u64 => 0,
        /// Length, in bytes.
        len: u64 => 8,
    }
}

wire_struct! {
    /// Reply of IOCTL; data, or [`IoctlIovec`]s, follow.
    IoctlOut = "fuse_ioctl_out", 16 bytes {
        /// The ioctl's result.
        result: i32 => 0,
        /// [`IoctlFlags`], of which RETRY counts.
        flags: u32 => 4,
        /// Vectors to read, with RETRY.
        in_iovs: u32 => 8,
        /// Vectors to write, with RETRY.
        out_iovs: u32 => 12,
    }
}
