//! A way to open the process's own descriptors anew, by number, after /proc is out of reach.

use std::os::fd::OwnedFd;

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
