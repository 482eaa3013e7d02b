//! The two servers there are, and what has to be done differently for the one with faults.
//!
//! What the original server gets wrong is known from its source alone. Where there is another way to the same end it is
//! taken; where there is none, the operation is refused with the reason, rather than reported done.

use rustix::io::Errno;

use super::call_error::CallError;
use crate::abi::rhostfs::WHOLE_SIZES;

/// Longest piece that a copy between two processes takes, in every DVK (`MAXCOPYLEN`).
const MAX_COPY: usize = 1 << 20;
/// What the original client reads and writes at once, and so all that the original server was ever asked for.
const ORIGINAL_PIECE: usize = 4096;

/// i386's flags of `open`, as far as they are sent.
const O_CREAT: i32 = 0x40;
const O_ACCMODE_APPEND: i32 = 0x403;

/// Which server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `gangplank-dvk serve`.
    Ours,
    /// PID5162's `rhostfsd`.
    Original,
}

impl Dialect {
    /// The longest piece of data that is asked for or sent at once.
    pub(crate) const fn piece(self) -> usize {
        match self {
            Self::Ours => MAX_COPY,
            Self::Original => ORIGINAL_PIECE,
        }
    }

    /// Whether a handle's attributes can be asked for. The original does not serve fstat64.
    pub(crate) const fn stats_handles(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether a handle is never given out again for another file, by the server or by the one after it. The original's are
    /// its file descriptors.
    pub(crate) const fn tells_handles_apart(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether a read beyond the file's end tells where the end is. The original copies and answers what it was asked for,
    /// whatever it has read.
    pub(crate) const fn tells_end(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether a position in a directory means the same when the directory is opened again. The
    /// original cuts it to 32 bits.
    pub(crate) const fn keeps_cookies(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether a handle that is made to mean what it means already has the server tell what it could
    /// not write. To the original's kernel that is no close, and tells nothing.
    pub(crate) const fn flushes(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether the call for setting times sets those it is given.
    pub(crate) const fn sets_times(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// Whether renaming takes the call with flags even without any: the original's plain rename takes both names from the
    /// first one's address.
    pub(crate) const fn renames_by_flags_alone(self) -> bool {
        matches!(self, Self::Original)
    }

    /// Whether changing a link's owner by name changes the link's, rather than its target's.
    pub(crate) const fn owns_links(self) -> bool {
        matches!(self, Self::Ours)
    }

    /// What the server is told of how much of a size is taken.
    pub(crate) const fn sizes(self) -> i32 {
        match self {
            Self::Ours => WHOLE_SIZES,
            Self::Original => 0,
        }
    }

    /// The largest size of a file, and so the highest position that can be read or written. Both have 64 bits for a position; the
    /// original uses 32.
    pub(crate) const fn largest(self) -> u64 {
        match self {
            Self::Ours => i64::MAX as u64,
            Self::Original => u32::MAX as u64,
        }
    }

    /// The mode field of an open. Without O_CREAT it has the access mode once more, where the original client puts it; a
    /// server that goes by the flags finds it there as well.
    pub(crate) fn open_mode(self, flags: i32, mode: u32) -> i32 {
        if flags & O_CREAT == 0 {
            flags & O_ACCMODE_APPEND
        } else {
            (mode & 0o7777).cast_signed()
        }
    }

    /// How much a read of `asked` bytes that was answered with `told` has brought.
    pub(crate) fn read_result(self, told: i32, asked: usize) -> Result<usize, CallError> {
        match (self, usize::try_from(told)) {
            // It answers what its copy returned: nothing if the client is remote, else what was asked for.
            (Self::Original, _) => Ok(asked),
            (Self::Ours, Ok(told)) if told <= asked => Ok(told),
            (Self::Ours, _) => Err(CallError::Garbled {
                call: "pread64",
                what: "more than was asked for",
            }),
        }
    }

    /// How much a write of `asked` bytes that was answered with `told` has written.
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

    /// The error that a negative result means. Numbers are those of Linux on i386, which are the same everywhere; DVK's own,
    /// which a server should not let through, mean that something went wrong on its side.
    pub(crate) fn errno(self, result: i32) -> Errno {
        /// Linux's highest.
        const MAX_ERRNO: i32 = 133;
        const ENOTCONN: i32 = 107;
        match result.checked_neg() {
            // For calls that it does not have.
            Some(ENOTCONN) if self == Self::Original => Errno::NOSYS,
            Some(errno @ 1..=MAX_ERRNO) => Errno::from_raw_os_error(errno),
            _ => Errno::IO,
        }
    }
}
