//! Reopens the process's own descriptors by number after `/proc` is out of reach.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::error::Error;

/// Opens `/proc/self/fd`, `O_PATH`.
///
/// If the kernel permits it, the descriptor is a detached mount, so that not even `..` leads from
/// it to the rest of `/proc`. Must be called before the root changes. The host's `/proc` works in a
/// new process namespace as well, because `self` is resolved here.
pub(super) fn open() -> Result<OwnedFd, Error> {
    const PATH: &str = "/proc/self/fd";
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if let Ok(detached) = open_tree(CWD, PATH, clone) {
        return Ok(detached);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, PATH, flags, Mode::empty())
        .map_err(|error| Error::ProcSelfFd(error.into()))
}

/// Reopens a directory's `O_PATH` descriptor for reading.
pub(super) fn reopen(proc_self_fd: &OwnedFd, directory: &OwnedFd) -> Result<OwnedFd, Error> {
    let number = directory.as_raw_fd().to_string();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(proc_self_fd, number, flags, Mode::empty())
        .map_err(|error| Error::Reopen(error.into()))
}
