//! Advisory locks: OFD locks (`fcntl(2)`, `F_OFD_*`) and BSD locks (`flock(2)`).
#![allow(unsafe_code)] // fcntl with a pointer argument

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The type of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Shared: others may hold read locks.
    Read,
    /// Exclusive.
    Write,
    /// Releases a lock.
    Unlock,
}

/// A lock on the bytes from `start` on. A `length` of 0 extends to the end of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLock {
    /// Type of the lock.
    pub kind: LockKind,
    /// Offset of the first byte.
    pub start: i64,
    /// Number of bytes, or 0.
    pub length: i64,
}

impl RangeLock {
    fn raw(self) -> libc::flock {
        // SAFETY: all-zero is a valid `flock`, whose padding differs between architectures.
        let mut raw: libc::flock = unsafe { std::mem::zeroed() };
        let kind = match self.kind {
            LockKind::Read => libc::F_RDLCK,
            LockKind::Write => libc::F_WRLCK,
            LockKind::Unlock => libc::F_UNLCK,
        };
        raw.l_type = i16::try_from(kind).unwrap_or(i16::MAX);
        raw.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or(i16::MAX);
        raw.l_start = self.start;
        raw.l_len = self.length;
        raw
    }
}

/// Takes or releases a lock of `file`'s open file description; `wait` waits until it is free.
///
/// # Errors
/// Those of `fcntl(2)`: EAGAIN if another description holds a conflicting lock, EINTR if a signal
/// interrupts the wait.
pub fn set_range_lock(file: BorrowedFd<'_>, lock: RangeLock, wait: bool) -> io::Result<()> {
    let command = if wait {
        libc::F_OFD_SETLKW
    } else {
        libc::F_OFD_SETLK
    };
    let mut raw = lock.raw();
    // SAFETY: `raw` is an initialised `flock` that outlives the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut raw) })
}

/// The first conflicting lock of another open file description.
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn test_range_lock(file: BorrowedFd<'_>, lock: RangeLock) -> io::Result<Option<RangeLock>> {
    let mut raw = lock.raw();
    // SAFETY: `raw` is an initialised `flock` that outlives the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut raw) })?;
    let kind = match i32::from(raw.l_type) {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        _ => return Ok(None),
    };
    Ok(Some(RangeLock {
        kind,
        start: raw.l_start,
        length: raw.l_len,
    }))
}

/// Takes or releases the BSD lock of `file`'s open file description; `wait` waits until it is free.
///
/// # Errors
/// Those of `flock(2)`: EAGAIN if another description holds a conflicting lock, EINTR if a signal
/// interrupts the wait.
pub fn set_flock(file: BorrowedFd<'_>, kind: LockKind, wait: bool) -> io::Result<()> {
    let operation = match kind {
        LockKind::Read => libc::LOCK_SH,
        LockKind::Write => libc::LOCK_EX,
        LockKind::Unlock => libc::LOCK_UN,
    };
    let operation = if wait {
        operation
    } else {
        operation | libc::LOCK_NB
    };
    // SAFETY: flock takes no pointers.
    check(unsafe { libc::flock(file.as_raw_fd(), operation) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
