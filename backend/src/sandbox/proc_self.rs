//! A way to open the process's own descriptors anew, by number, after /proc is out of reach.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::Error;

/// `/proc/self/fd`, `O_PATH`.
///
/// Where permitted it is a mount of its own that exists nowhere in the tree, so that not even `..`
/// leads from it to the rest of /proc. A copy of /proc as the host has it would do as well inside
/// a new process namespace: it is asked before the root changes and bound to this process since.
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

/// Opens a directory held by an `O_PATH` descriptor, for reading.
pub(super) fn reopen(proc_self_fd: &OwnedFd, directory: &OwnedFd) -> Result<OwnedFd, Error> {
    let number = directory.as_raw_fd().to_string();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(proc_self_fd, number, flags, Mode::empty())
        .map_err(|error| Error::Reopen(error.into()))
}
