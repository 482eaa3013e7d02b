//! Reopens the process's own descriptors by number after `/proc` is out of reach.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Dir, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::Error;

/// Where the kernel mounts the process file system.
pub(super) const PROC: &str = "/proc";

/// Opens `/proc`, `O_PATH`, for [`open`] in a process that is forked later.
pub(super) fn open_proc() -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, PROC, flags, Mode::empty())
        .map_err(|error| Error::ProcSelfFd(error.into()))
}

/// Opens the calling process's `self/fd` in `proc`, `O_PATH`.
///
/// If the process has CAP_SYS_ADMIN, the descriptor is a detached mount, so that not even `..`
/// leads from it to the rest of `/proc`. The host's `/proc` works in a new process namespace as
/// well, because `self` is resolved here.
pub(super) fn open(proc: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    const PATH: &str = "self/fd";
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if let Ok(detached) = open_tree(proc, PATH, clone) {
        return Ok(detached);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(proc, PATH, flags, Mode::empty())
        .map_err(|error| Error::ProcSelfFd(error.into()))
}

/// The numbers of the calling process's descriptors, found in `proc`.
pub(super) fn numbers(proc: BorrowedFd<'_>) -> Result<Vec<RawFd>, Error> {
    let failed = |error: Errno| Error::ProcSelfFd(error.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(proc, "self/fd", flags, Mode::empty()).map_err(failed)?;
    let own = dir.as_raw_fd();
    let mut numbers = Vec::new();
    for entry in Dir::new(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let number = entry.file_name().to_str().ok();
        numbers.extend(number.and_then(|number| number.parse::<RawFd>().ok()));
    }
    numbers.retain(|number| *number != own);
    Ok(numbers)
}

/// The id that `proc`, the host's `/proc`, has for the process of a pidfd: the calling process may
/// be in a process namespace where that one has none. `None` if it has ended.
pub(super) fn process_of(proc: BorrowedFd<'_>, pidfd: impl AsFd) -> io::Result<Option<NonZeroU32>> {
    let path = format!("self/fdinfo/{}", pidfd.as_fd().as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, path, flags, Mode::empty())?;
    // The kernel writes it at once (proc(5), "/proc/pid/fdinfo").
    let mut text = [0; 512];
    let len = rustix::io::read(&file, &mut text)?;
    let text = str::from_utf8(text.get(..len).unwrap_or_default()).unwrap_or_default();
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    Ok(pid.and_then(|pid| pid.trim().parse().ok()))
}

/// Reopens a directory's `O_PATH` descriptor for reading.
pub(super) fn reopen(proc_self_fd: &OwnedFd, directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let number = directory.as_raw_fd().to_string();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(proc_self_fd, number, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use rustix::process::{PidfdFlags, WaitOptions, getpid, pidfd_open, waitpid};

    use super::*;
    use crate::sys::process::{self, Forked};

    #[test]
    fn a_pidfd_tells_the_process_until_that_has_ended() {
        let proc = open_proc().unwrap();
        let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let told = process_of(proc.as_fd(), &own).unwrap();
        assert_eq!(told.map(NonZeroU32::get), Some(std::process::id()));
        let Forked::Parent(child) = process::fork().unwrap() else {
            process::exit(0)
        };
        let ended = pidfd_open(child, PidfdFlags::empty()).unwrap();
        waitpid(Some(child), WaitOptions::empty()).unwrap();
        assert_eq!(process_of(proc.as_fd(), &ended).unwrap(), None);
        assert!(process_of(proc.as_fd(), &proc).unwrap().is_none());
    }
}
