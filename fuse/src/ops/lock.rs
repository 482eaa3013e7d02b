//! GETLK, SETLK, SETLKW: POSIX and BSD locks.

use bitflags::bitflags;

wire_struct! {
    /// A range and what lock is on it.
    FileLock = "fuse_file_lock", 24 bytes {
        /// First byte.
        start: u64 => 0,
        /// Last byte, inclusive; `OFFSET_MAX` (2^63 - 1) for "to the end".
        end: u64 => 8,
        /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
        r#type: u32 => 16,
        /// Holder's process, in the guest; zero if unknown.
        pid: u32 => 20,
    }
}

wire_struct! {
    /// GETLK, SETLK or SETLKW.
    LkIn = "fuse_lk_in", 48 bytes {
        /// The open file.
        fh: u64 => 0,
        /// The lock owner: opaque, equal for all that share locks.
        owner: u64 => 8,
        /// What is asked for.
        lk: FileLock => 16,
        /// [`LkFlags`].
        lk_flags: u32 => 40,
        /// Zero.
        padding: u32 => 44,
    }
}

bitflags! {
    /// Kind of lock (`FUSE_LK_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct LkFlags: u32 {
        /// A BSD lock, of the whole file, as flock(2).
        const FLOCK = 1 << 0;
    }
}

wire_struct! {
    /// Reply of GETLK: a lock in the way, or `F_UNLCK`.
    LkOut = "fuse_lk_out", 24 bytes {
        /// The lock.
        lk: FileLock => 0,
    }
}
