//! INIT: both ends tell their version, limits and features, and agree.
//!
//! The client sends its own; the server answers with the smaller minor version and the features it
//! takes. A client of a newer major version is answered with our major version alone and sends INIT
//! again.

use bitflags::bitflags;
use zerocopy::IntoBytes;

use crate::cursor::Cursor;
use crate::{DecodeError, Dialect};

bitflags! {
    /// Features of a session (`FUSE_*` INIT flags), both words of the wire in one number.
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct InitFlags: u64 {
        /// Reads may be sent in any order and at once.
        const ASYNC_READ = 1 << 0;
        /// POSIX locks are the server's.
        const POSIX_LOCKS = 1 << 1;
        /// GETATTR and its kin carry a file handle (never used).
        const FILE_OPS = 1 << 2;
        /// The server truncates at OPEN with O_TRUNC.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// LOOKUP of "." and ".." works, so the mount may be exported.
        const EXPORT_SUPPORT = 1 << 4;
        /// Writes larger than 4 KiB.
        const BIG_WRITES = 1 << 5;
        /// The server applies the umask.
        const DONT_MASK = 1 << 6;
        /// The kernel can splice writes on its device.
        const SPLICE_WRITE = 1 << 7;
        /// The kernel can move pages on its device.
        const SPLICE_MOVE = 1 << 8;
        /// The kernel can splice reads on its device.
        const SPLICE_READ = 1 << 9;
        /// BSD locks are the server's.
        const FLOCK_LOCKS = 1 << 10;
        /// IOCTL on directories.
        const HAS_IOCTL_DIR = 1 << 11;
        /// Cached pages are dropped when size or mtime change.
        const AUTO_INVAL_DATA = 1 << 12;
        /// READDIRPLUS is used.
        const DO_READDIRPLUS = 1 << 13;
        /// READDIRPLUS is used only where names were looked up before.
        const READDIRPLUS_AUTO = 1 << 14;
        /// Direct I/O may be asynchronous.
        const ASYNC_DIO = 1 << 15;
        /// The client caches writes and owns size and times meanwhile.
        const WRITEBACK_CACHE = 1 << 16;
        /// OPEN answered with ENOSYS means that no file needs it.
        const NO_OPEN_SUPPORT = 1 << 17;
        /// LOOKUP and READDIR of one directory may run at once.
        const PARALLEL_DIROPS = 1 << 18;
        /// The server clears set-id bits on write, chown and truncate.
        const HANDLE_KILLPRIV = 1 << 19;
        /// POSIX ACLs are checked by the client.
        const POSIX_ACL = 1 << 20;
        /// Reading the kernel's device after an abort fails with ECONNABORTED.
        const ABORT_ERROR = 1 << 21;
        /// `InitOut::max_pages` is valid.
        const MAX_PAGES = 1 << 22;
        /// READLINK results are cached.
        const CACHE_SYMLINKS = 1 << 23;
        /// OPENDIR answered with ENOSYS means that no directory needs it.
        const NO_OPENDIR_SUPPORT = 1 << 24;
        /// Cached pages are dropped on explicit request only.
        const EXPLICIT_INVAL_DATA = 1 << 25;
        /// `InitOut::map_alignment` is valid: log2 of what DAX offsets are multiples of.
        const MAP_ALIGNMENT = 1 << 26;
        /// Directories may be announced as mount points (`AttrFlags::SUBMOUNT`).
        const SUBMOUNTS = 1 << 27;
        /// The server clears set-id bits as the VFS would, when asked per request.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// SETXATTR carries `setxattr_flags`.
        const SETXATTR_EXT = 1 << 29;
        /// `flags2` is valid.
        const INIT_EXT = 1 << 30;
        /// Reserved.
        const INIT_RESERVED = 1 << 31;
        /// Requests that make inodes carry a security context.
        const SECURITY_CTX = 1 << 32;
        /// DAX is chosen per inode (`AttrFlags::DAX`).
        const HAS_INODE_DAX = 1 << 33;
        /// Requests that make inodes carry the one supplementary group that matches the parent's.
        const CREATE_SUPP_GROUP = 1 << 34;
        /// Names can be made to expire instead of being dropped.
        const HAS_EXPIRE_ONLY = 1 << 35;
        /// Shared mmap of files opened with `FopenFlags::DIRECT_IO`.
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// Reads and writes may go straight to a backing file.
        const PASSTHROUGH = 1 << 37;
        /// The mount must not be exported.
        const NO_EXPORT_SUPPORT = 1 << 38;
        /// Requests in flight can be asked for again.
        const HAS_RESEND = 1 << 39;
        /// The mount may be id-mapped.
        const ALLOW_IDMAP = 1 << 40;
        /// Requests may come over io_uring.
        const OVER_IO_URING = 1 << 41;
        /// `InitOut::request_timeout` is valid.
        const REQUEST_TIMEOUT = 1 << 42;
    }
}

impl InitFlags {
    /// Joins the two words of the wire. The upper counts only where the lower says so with
    /// `INIT_EXT`.
    #[must_use]
    pub fn join(flags: u32, flags2: u32) -> Self {
        let low = Self::from_bits_retain(u64::from(flags));
        if low.contains(Self::INIT_EXT) {
            low | Self::from_bits_retain(u64::from(flags2) << 32)
        } else {
            low
        }
    }

    /// Splits into the wire's `flags` and `flags2`.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "splitting the number in halves is the purpose"
    )]
    pub fn split(self) -> (u32, u32) {
        (self.bits() as u32, (self.bits() >> 32) as u32)
    }
}

wire_struct! {
    /// The client's INIT. Kernels before 5.17 send the first 16 bytes, which
    /// [`crate::Operation::decode`] fills up with zeros.
    InitIn = "fuse_init_in", 64 bytes {
        /// Major version, 7.
        major: u32 => 0,
        /// Minor version.
        minor: u32 => 4,
        /// Wanted read-ahead, in bytes.
        max_readahead: u32 => 8,
        /// Features offered, lower word; see [`InitIn::features`].
        flags: u32 => 12,
        /// Features offered, upper word (7.36).
        flags2: u32 => 16,
        /// Zero.
        unused: [u32; 11] => 20,
    }
}

impl InitIn {
    /// Bytes that every client since 7.6 sends.
    pub const COMPAT_SIZE: usize = 16;

    /// Features offered.
    #[must_use]
    pub fn features(&self) -> InitFlags {
        InitFlags::join(self.flags, self.flags2)
    }

    /// Replaces the features offered.
    pub fn set_features(&mut self, features: InitFlags) {
        (self.flags, self.flags2) = features.split();
    }

    pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        // 8 bytes, the two version numbers, is what a client may send whose major version is not
        // ours.
        cursor.extensible(8)
    }

    /// As Linux does: the short form before it offered features of the upper word.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let beyond = self.flags2 != 0 || self.unused != [0; 11];
        let extended = beyond || self.features().contains(InitFlags::INIT_EXT);
        let length = if extended {
            size_of::<Self>()
        } else {
            Self::COMPAT_SIZE
        };
        out.extend(self.as_bytes().iter().take(length));
    }
}

wire_struct! {
    /// The server's answer to INIT.
    InitOut = "fuse_init_out", 64 bytes {
        /// Major version, 7.
        major: u32 => 0,
        /// Minor version; the smaller of both sides' holds.
        minor: u32 => 4,
        /// Read-ahead granted, in bytes.
        max_readahead: u32 => 8,
        /// Features taken, lower word; see [`InitOut::features`].
        flags: u32 => 12,
        /// How many background requests may be in flight (7.13); 0 leaves the client's default.
        max_background: u16 => 16,
        /// From how many the mount counts as congested (7.13); 0 leaves the client's default.
        congestion_threshold: u16 => 18,
        /// Largest WRITE, in bytes; at least 4096.
        max_write: u32 => 20,
        /// Granularity of timestamps, in nanoseconds: a power of ten, 1 to 1 000 000 000 (7.23).
        time_gran: u32 => 24,
        /// Largest request, in pages of the client's size, with `InitFlags::MAX_PAGES` (7.28).
        max_pages: u16 => 28,
        /// log2 of the alignment of DAX offsets, with `InitFlags::MAP_ALIGNMENT` (7.31).
        map_alignment: u16 => 30,
        /// Features taken, upper word (7.36).
        flags2: u32 => 32,
        /// How deep backing files may be stacked, with `InitFlags::PASSTHROUGH` (7.40).
        max_stack_depth: u32 => 36,
        /// Seconds until a request without an answer aborts the session, with
        /// `InitFlags::REQUEST_TIMEOUT` (7.43).
        request_timeout: u16 => 40,
        /// Zero.
        unused: [u16; 11] => 42,
    }
}

impl InitOut {
    /// What servers before 7.5 send, and what answers a client of another major version.
    pub const COMPAT_SIZE: usize = 8;
    /// What servers before 7.23 send (`FUSE_COMPAT_22_INIT_OUT_SIZE`).
    pub const COMPAT_22_SIZE: usize = 24;

    /// Features taken.
    #[must_use]
    pub fn features(&self) -> InitFlags {
        InitFlags::join(self.flags, self.flags2)
    }

    /// Replaces the features taken.
    pub fn set_features(&mut self, features: InitFlags) {
        (self.flags, self.flags2) = features.split();
    }

    /// How later requests are laid out, `asked` having been answered with this.
    #[must_use]
    pub fn dialect(&self, asked: &InitIn) -> Dialect {
        Dialect::negotiated(
            self.minor.min(asked.minor),
            self.features() & asked.features(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_word_counts_only_with_init_ext() {
        assert_eq!(InitFlags::join(1, 1), InitFlags::ASYNC_READ);
        assert_eq!(
            InitFlags::join(1 << 30, 1),
            InitFlags::INIT_EXT | InitFlags::SECURITY_CTX
        );
    }

    #[test]
    fn split_is_the_inverse_of_join() {
        let flags = InitFlags::INIT_EXT | InitFlags::REQUEST_TIMEOUT | InitFlags::ASYNC_READ;
        let (low, high) = flags.split();
        assert_eq!(InitFlags::join(low, high), flags);
    }

    #[test]
    fn dialect_needs_both_sides() {
        let mut asked = InitIn {
            major: 7,
            minor: 38,
            ..InitIn::default()
        };
        let mut answered = InitOut {
            major: 7,
            minor: 45,
            ..InitOut::default()
        };
        asked.set_features(InitFlags::SETXATTR_EXT | InitFlags::INIT_EXT | InitFlags::SECURITY_CTX);
        answered.set_features(InitFlags::INIT_EXT | InitFlags::SECURITY_CTX);
        assert_eq!(
            answered.dialect(&asked),
            Dialect {
                minor: 38,
                setxattr_ext: false,
                security_ctx: true
            }
        );
    }
}
