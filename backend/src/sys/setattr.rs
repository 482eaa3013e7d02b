//! System calls that change a file's mode, owner and times.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::file::{DescriptorName, mode_bits};
use super::ids::{HostGid, HostUid};

/// Changes the permission bits of a file.
///
/// # Errors
/// Those of `fchmodat(2)`.
pub fn change_mode(
    proc_self_fd: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    mode: u32,
) -> io::Result<()> {
    let name = DescriptorName::new(file);
    Ok(rustix::fs::chmodat(
        proc_self_fd,
        name.as_c_str(),
        mode_bits(mode),
        AtFlags::empty(),
    )?)
}

/// Changes owner and group; `None` leaves one unchanged.
///
/// # Errors
/// Those of `fchownat(2)`, but EPERM for an id that the user namespace does not map; EINVAL for the
/// id that means "unchanged" (-1).
pub fn change_owner(
    file: BorrowedFd<'_>,
    uid: Option<HostUid>,
    gid: Option<HostGid>,
) -> io::Result<()> {
    if uid == Some(HostUid::new(u32::MAX)) || gid == Some(HostGid::new(u32::MAX)) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (
        uid.map(|uid| rustix::fs::Uid::from_raw(uid.get())),
        gid.map(|gid| rustix::fs::Gid::from_raw(gid.get())),
    );
    rustix::fs::chownat(file, c"", uid, gid, flags).map_err(|error| match error {
        // To the guest, the owner is one that exists and that the daemon may not give.
        Errno::INVAL => Errno::PERM.into(),
        error => error.into(),
    })
}

/// The new value of a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewTime {
    /// Unchanged.
    Omit,
    /// The host's current time.
    Now,
    /// Seconds since the epoch, and nanoseconds below 1,000,000,000.
    At(i64, u32),
}

impl NewTime {
    fn timespec(self) -> io::Result<Timespec> {
        let (tv_sec, tv_nsec) = match self {
            Self::Omit => (0, rustix::fs::UTIME_OMIT),
            Self::Now => (0, rustix::fs::UTIME_NOW),
            // Larger values could be UTIME_NOW or UTIME_OMIT.
            Self::At(_, nanoseconds) if nanoseconds >= 1_000_000_000 => {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            Self::At(seconds, nanoseconds) => (seconds, nanoseconds.into()),
        };
        Ok(Timespec { tv_sec, tv_nsec })
    }
}

/// Sets access and modification time of a file or symbolic link.
///
/// # Errors
/// Those of `utimensat(2)`; EINVAL for nanoseconds out of range.
pub fn set_times(file: BorrowedFd<'_>, accessed: NewTime, modified: NewTime) -> io::Result<()> {
    let times = Timestamps {
        last_access: accessed.timespec()?,
        last_modification: modified.timespec()?,
    };
    Ok(rustix::fs::utimensat(
        file,
        c"",
        &times,
        AtFlags::EMPTY_PATH,
    )?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::file::stat;

    #[test]
    fn nanoseconds_that_would_mean_something_else_are_refused() {
        let file = tempfile::tempfile().expect("a temporary file");
        let now = NewTime::At(0, u32::try_from(libc::UTIME_NOW).expect("positive"));
        let error = set_times(file.as_fd(), now, NewTime::Omit).expect_err("out of range");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        set_times(file.as_fd(), NewTime::At(5, 6), NewTime::Now).expect("set");
        assert_eq!(stat(file.as_fd()).expect("attributes").stx_atime.tv_sec, 5);
    }
}
