//! Advisory locks on the host's files (`--locks=host`).
//!
//! The POSIX locks of a guest process belong to an owner, whichever handle the process uses. So
//! each (inode, owner) pair has its own open file description on the host, which holds these locks
//! as OFD locks. It is closed when the owner closes the file, when the last handle is released, or
//! when the session ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use gangplank_fuse::{FileLock, Handle, LkFlags, LkIn, NodeId};

use super::budget::Descriptor;
use super::errno::not_openable;
use super::file_type::FileType;
use super::fs::{Node, PassthroughFs};
use super::options::Locks;
use crate::session::file_system::FileLocks;
use crate::session::{LockWait, not_offered};
use crate::sys::file_lock::{self, LockKind, RangeLock};

/// Last byte of a lock that extends to the end of the file (`OFFSET_MAX`, `linux/fs.h`).
const OFFSET_MAX: u64 = i64::MAX.cast_unsigned();

impl FileLocks for PassthroughFs {
    /// Finds a conflicting POSIX lock.
    fn getlk(&self, id: NodeId, args: &LkIn) -> io::Result<FileLock> {
        self.check_host_locks()?;
        let lock = range_lock(&args.lk)?;
        self.state.files.get(Handle::new(args.fh), id)?;
        let lock_file = self.lock_file(id, args.owner)?;
        let Some(found) = file_lock::test_range_lock(lock_file.as_fd(), lock)? else {
            return Ok(FileLock {
                r#type: libc::F_UNLCK.cast_unsigned(),
                ..args.lk
            });
        };
        let start = found.start.cast_unsigned();
        let end = match found.length {
            0 => OFFSET_MAX,
            length => start
                .saturating_add(length.cast_unsigned())
                .saturating_sub(1),
        };
        Ok(FileLock {
            start,
            end,
            r#type: wire_type(found.kind),
            // The guest does not know the process that holds the lock.
            pid: 0,
        })
    }

    /// Takes or releases a lock.
    fn setlk(&self, id: NodeId, args: &LkIn, wait: LockWait<'_>) -> io::Result<()> {
        self.check_host_locks()?;
        let file = self.state.files.get(Handle::new(args.fh), id)?;
        if LkFlags::from_bits_retain(args.lk_flags).contains(LkFlags::FLOCK) {
            let kind = lock_kind(args.lk.r#type)?;
            with_wait(wait, |wait| file_lock::set_flock(file.as_fd(), kind, wait))?;
            self.state
                .files
                .note_flock(Handle::new(args.fh), kind != LockKind::Unlock);
            return Ok(());
        }
        let lock = range_lock(&args.lk)?;
        if lock.kind == LockKind::Unlock
            && self
                .state
                .posix_locks
                .lock()
                .get((id, args.owner))
                .is_none()
        {
            return Ok(());
        }
        let lock_file = self.lock_file(id, args.owner)?;
        with_wait(wait, |wait| {
            file_lock::set_range_lock(lock_file.as_fd(), lock, wait)
        })
    }
}

impl PassthroughFs {
    fn check_host_locks(&self) -> io::Result<()> {
        if self.share.options.locks == Locks::Host {
            return Ok(());
        }
        Err(not_offered())
    }

    /// The open file description that holds an owner's locks on a node.
    fn lock_file(&self, id: NodeId, owner: u64) -> io::Result<Arc<Descriptor>> {
        if let Some(lock_file) = self.state.posix_locks.lock().get((id, owner)) {
            return Ok(Arc::clone(lock_file));
        }
        let node = self.node(id)?;
        if node.file_type != FileType::Regular {
            return Err(not_openable(node.file_type, false));
        }
        let permit = self.acquire_file_permit()?;
        let lock_file = Arc::new(Descriptor::new(self.open_lock_file(&node)?, permit));
        let mut locks = self.state.posix_locks.lock();
        if let Some(present) = locks.get((id, owner)) {
            return Ok(Arc::clone(present));
        }
        locks.insert((id, owner), Arc::clone(&lock_file))?;
        Ok(lock_file)
    }

    /// Opens a node for reading and writing, because read and write locks each need their access
    /// mode. Falls back to one of the modes.
    fn open_lock_file(&self, node: &Node) -> io::Result<OwnedFd> {
        let open = |mode| self.reopen_file(node, mode);
        if self.share.options.readonly {
            return open(libc::O_RDONLY);
        }
        open(libc::O_RDWR)
            .or_else(|_| open(libc::O_RDONLY))
            .or_else(|_| open(libc::O_WRONLY))
    }
}

/// Calls `lock` without waiting, or waits until the lock is free or the wait is interrupted.
fn with_wait(wait: LockWait<'_>, lock: impl Fn(bool) -> io::Result<()>) -> io::Result<()> {
    match wait {
        LockWait::No => lock(false),
        LockWait::UntilFree(interruption) => interruption.run(|| lock(true)),
    }
}

fn lock_kind(kind: u32) -> io::Result<LockKind> {
    match kind.cast_signed() {
        libc::F_RDLCK => Ok(LockKind::Read),
        libc::F_WRLCK => Ok(LockKind::Write),
        libc::F_UNLCK => Ok(LockKind::Unlock),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

fn wire_type(kind: LockKind) -> u32 {
    let number = match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    };
    number.cast_unsigned()
}

/// Converts a lock from first and last byte to first byte and length.
fn range_lock(lock: &FileLock) -> io::Result<RangeLock> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let start = i64::try_from(lock.start).map_err(|_| invalid())?;
    let length = if lock.end >= OFFSET_MAX {
        0
    } else {
        let length = lock.end.checked_sub(lock.start).ok_or_else(invalid)?;
        i64::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(1))
            .ok_or_else(invalid)?
    };
    Ok(RangeLock {
        kind: lock_kind(lock.r#type)?,
        start,
        length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(start: u64, end: u64) -> FileLock {
        FileLock {
            start,
            end,
            r#type: libc::F_RDLCK.cast_unsigned(),
            pid: 0,
        }
    }

    #[test]
    fn ranges_are_translated() {
        for (start, end, length) in [(0, 0, 1), (5, 9, 5), (5, OFFSET_MAX, 0), (5, u64::MAX, 0)] {
            let range = range_lock(&lock(start, end)).expect("valid");
            assert_eq!((range.start.cast_unsigned(), range.length), (start, length));
        }
    }

    #[test]
    fn impossible_ranges_and_kinds_are_refused() {
        for (start, end) in [(9, 5), (u64::MAX, u64::MAX), (1 << 63, OFFSET_MAX)] {
            assert!(range_lock(&lock(start, end)).is_err(), "{start} to {end}");
        }
        assert!(lock_kind(3).is_err() && lock_kind(u32::MAX).is_err());
    }
}
