//! Asks a file system what it can do. Leaves nothing behind: what it makes has no name.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Abilities;
use super::kind;
use crate::sys::file::{self, Statx};
use crate::sys::file_content;
use crate::sys::file_handle::FileHandle;
use crate::sys::file_lock::{self, LockKind, RangeLock};

/// Requests the alignment of direct I/O from statx(2) (`STATX_DIOALIGN`, `linux/stat.h`, Linux
/// 6.1).
const DIRECT_IO: u32 = 0x2000;

/// Most entries of the directory that are looked at.
const MAX_ENTRIES: usize = 8;

/// Whether the probe may make a file without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// It may.
    Allowed,
    /// The share is read-only.
    Forbidden,
}

/// Whether the file system has what a call needs that failed. `None`: the failure says nothing
/// about that, such as a lack of permission.
fn verdict<T>(result: io::Result<T>) -> Option<bool> {
    match result {
        Ok(_) => Some(true),
        Err(error) => match error.raw_os_error() {
            Some(
                libc::EOPNOTSUPP
                | libc::ENOSYS
                | libc::EINVAL
                | libc::EISDIR
                | libc::ENOTTY
                | libc::ENOLCK,
            ) => Some(false),
            _ => None,
        },
    }
}

/// What the file system of an open directory can do.
#[must_use]
pub fn abilities(directory: BorrowedFd<'_>, writing: Writing) -> Abilities {
    let stat = file::stat(directory).ok();
    let opened = file::open_at(directory, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0).ok();
    let mut abilities = Abilities {
        lasting_handles: lasting_handles(directory),
        birth_times: stat.as_ref().map(has_birth_time),
        xattrs: opened
            .as_ref()
            .and_then(|opened| has_xattrs(opened.as_fd())),
        inode_numbers: opened
            .as_ref()
            .and_then(|opened| has_inode_numbers(opened.as_fd())),
        ..Abilities::default()
    };
    if writing == Writing::Forbidden {
        return abilities;
    }
    let flags = libc::O_TMPFILE | libc::O_RDWR;
    let made = file::open_at(directory, c".", flags, 0o600);
    let unnamed = made.as_ref().ok().map(AsFd::as_fd);
    abilities.locks = unnamed.and_then(has_locks);
    abilities.fallocate = unnamed.and_then(|unnamed| {
        let reserve = libc::FALLOC_FL_KEEP_SIZE.unsigned_abs();
        verdict(file_content::allocate(unnamed, reserve, 0, 4096))
    });
    abilities.direct_io_bytes = unnamed.and_then(direct_io_bytes);
    abilities.tmpfile = verdict(made);
    abilities
}

/// The file system's magic number; 0 if it does not say.
#[must_use]
pub fn magic(file: BorrowedFd<'_>) -> u64 {
    file::file_system_magic(file).unwrap_or(0)
}

fn has_birth_time(stat: &Statx) -> bool {
    stat.stx_mask & libc::STATX_BTIME != 0
}

fn lasting_handles(directory: BorrowedFd<'_>) -> Option<bool> {
    if kind::is_fuse(magic(directory)) {
        return Some(false);
    }
    // A server's file systems answer by the handle itself, and disks by the inode's number. Whether
    // they can be opened is seen when the daemon is confined.
    match FileHandle::of(directory) {
        Ok(_) => Some(true),
        Err(error) if error.raw_os_error() == Some(libc::EOVERFLOW) => Some(true),
        failed => verdict(failed),
    }
}

fn has_xattrs(directory: BorrowedFd<'_>) -> Option<bool> {
    let mut value = [0_u8; 1];
    match rustix::fs::fgetxattr(directory, c"user.gangplank.probe", &mut value) {
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::RANGE) => Some(true),
        result => verdict(result.map_err(io::Error::from)),
    }
}

fn has_locks(unnamed: BorrowedFd<'_>) -> Option<bool> {
    let lock = RangeLock {
        kind: LockKind::Write,
        start: 0,
        length: 1,
    };
    let taken = file_lock::set_range_lock(unnamed, lock, false);
    let taken = taken.and_then(|()| file_lock::set_flock(unnamed, LockKind::Write, false));
    verdict(taken)
}

fn direct_io_bytes(unnamed: BorrowedFd<'_>) -> Option<u32> {
    let stat = file::stat_with(unnamed, DIRECT_IO, 0).ok()?;
    (stat.stx_mask & DIRECT_IO != 0).then_some(stat.stx_dio_offset_align)
}

/// Whether the number of an entry in the listing is that of the file. FUSE servers whose numbers
/// are made up as the kernel meets the files list others (libfuse without `use_ino`). `None` for an
/// empty directory.
fn has_inode_numbers(directory: BorrowedFd<'_>) -> Option<bool> {
    let own = file::identity(directory).ok()?;
    let entries = rustix::fs::Dir::read_from(directory).ok()?;
    for entry in entries.take(MAX_ENTRIES) {
        let entry = entry.ok()?;
        if [c".", c".."].contains(&entry.file_name()) {
            continue;
        }
        // It may be gone by now.
        let Ok(stat) = file::identity_at(directory, entry.file_name()) else {
            continue;
        };
        // The listing has the number of what a mount covers.
        if stat.stx_mnt_id == own.stx_mnt_id {
            return Some(stat.stx_ino == entry.ino());
        }
    }
    None
}

/// Opens the directory as `O_PATH`.
///
/// # Errors
/// Those of open(2).
pub(super) fn open(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags =
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_local_directory_is_asked_and_nothing_stays_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let opened = open(directory.path()).unwrap();
        let found = abilities(opened.as_fd(), Writing::Allowed);
        assert_eq!(found.locks, found.tmpfile.filter(|has| *has), "{found:?}");
        assert_eq!(found.inode_numbers, None, "the directory is empty");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        File::create(directory.path().join("file")).unwrap();
        let found = abilities(opened.as_fd(), Writing::Forbidden);
        assert_eq!(found.inode_numbers, Some(true));
        assert_eq!((found.tmpfile, found.fallocate), (None, None));
    }

    #[test]
    fn what_is_not_permitted_says_nothing() {
        let failed = |errno| verdict(Err::<(), _>(io::Error::from_raw_os_error(errno)));
        assert_eq!(failed(libc::EACCES), None);
        assert_eq!(failed(libc::EROFS), None);
        assert_eq!(failed(libc::EOPNOTSUPP), Some(false));
    }
}
