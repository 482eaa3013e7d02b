//! The differences between the two kinds of server.
//!
//! The faults of the original server are known from its source only. The mount avoids them where it
//! can. Otherwise it refuses the operation with the reason, and does not report success.

use rustix::io::Errno;

use super::call_error::CallError;
use crate::abi::rhostfs::WHOLE_SIZES;

/// Limit of a copy between two processes in bytes, in every DVK (`MAXCOPYLEN`).
const MAX_COPY: usize = 1 << 20;
/// Bytes of a read or write of the original client. The original server was never used with more.
const ORIGINAL_PIECE: usize = 4096;

/// Flags of `open` that the mount sends, as i386 numbers.
const O_CREAT: i32 = 0x40;
const O_ACCMODE_APPEND: i32 = 0x403;

/// The kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `gangplank-dvk serve`.
    Ours,
    /// PID5162's `rhostfsd`.
    Original,
}

impl Dialect {
    /// Limit of a single read or write in bytes.
    pub(crate) const fn piece(self) -> usize {
        match self {
            Self::Ours => MAX_COPY,
            Self::Original => ORIGINAL_PIECE,
        }
    }

    /// Whether the server returns attributes by handle. The original does not serve fstat64.
    pub(crate) const fn has_fstat(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether handles are never reused for another file, even after a restart. The original's
    /// handles are its file descriptors.
    pub(crate) const fn has_unique_handles(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether a read beyond the end of the file returns less than asked for. The original always
    /// answers with the requested count.
    pub(crate) const fn reports_end(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether a directory position stays valid when the directory is opened again. The original
    /// cuts positions to 32 bits.
    pub(crate) const fn has_stable_cookies(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether `dup2` of a handle to itself returns the error of earlier writes. The original's
    /// kernel does not treat it as a close, and returns none.
    pub(crate) const fn flushes(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether the call that sets times sets the given times.
    pub(crate) const fn sets_times(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether every rename must use the call with flags. The original's plain rename reads both
    /// names from the first name's address.
    pub(crate) const fn needs_rename_flags(self) -> bool {
        matches!(self, Self::Original)
    }

    /// Whether changing owners by name changes a link itself, and not its target.
    pub(crate) const fn can_chown_links(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// The value that tells the server how many bits of a size count.
    pub(crate) const fn sizes(self) -> i32 {
        match self {
            Self::Ours => WHOLE_SIZES,
            Self::Original => 0,
        }
    }

    /// The largest size of a file, and thus the highest position. Both protocols have 64 bits for a
    /// position, but the original uses 32.
    pub(crate) const fn largest(self) -> u64 {
        match self {
            Self::Ours => i64::MAX as u64,
            Self::Original => u32::MAX as u64,
        }
    }

    /// The mode field of an open. Without O_CREAT it repeats the access mode, where the original
    /// client puts it. A server that reads the flags finds it there too.
    pub(crate) fn open_mode(self, flags: i32, mode: u32) -> i32 {
        if flags & O_CREAT == 0 {
            flags & O_ACCMODE_APPEND
        } else {
            (mode & 0o7777).cast_signed()
        }
    }

    /// The bytes that a read of `asked` bytes returned, if the server answered `told`.
    pub(crate) fn read_result(self, told: i32, asked: usize) -> Result<usize, CallError> {
        match (self, usize::try_from(told)) {
            // The original answers its copy's result: zero for a remote client, else the requested
            // count.
            (Self::Original, _) => Ok(asked),
            (Self::Ours, Ok(told)) if told <= asked => Ok(told),
            (Self::Ours, _) => Err(CallError::Garbled {
                call: "pread64",
                what: "it has more data than requested",
            }),
        }
    }

    /// The bytes that a write of `asked` bytes wrote, if the server answered `told`.
    pub(crate) fn write_result(self, told: i32, asked: usize) -> Result<usize, CallError> {
        match (self, usize::try_from(told)) {
            (Self::Original, Ok(0)) if asked > 0 => Err(CallError::Impossible {
                what: "the original server writes nothing for clients on other nodes",
                errno: Errno::IO,
            }),
            (_, Ok(told)) if told <= asked => Ok(told),
            _ => Err(CallError::Garbled {
                call: "pwrite64",
                what: "more than was sent",
            }),
        }
    }

    /// The error of a negative result. Numbers up to Linux's highest are i386's, which are the same
    /// on all machines that matter. DVK's own numbers mean a failure on the server's side.
    pub(crate) fn errno(self, result: i32) -> Errno {
        /// Linux's highest error number.
        const MAX_ERRNO: i32 = 133;
        const ENOTCONN: i32 = 107;
        match result.checked_neg() {
            // The original's answer to calls that it does not support.
            Some(ENOTCONN) if self == Self::Original => Errno::NOSYS,
            Some(errno @ 1..=MAX_ERRNO) => Errno::from_raw_os_error(errno),
            _ => Errno::IO,
        }
    }
}
