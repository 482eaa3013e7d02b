//! `--sandbox=chroot`: the shared directory as the root of the process, where namespaces cannot be
//! had.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::{Error, Supervisor, identity, proc_self, supervisor};
use crate::sys::process::unshare;

/// Starts the process that is to be confined. It gets `None`.
pub(super) fn fork() -> Result<Option<Supervisor>, Error> {
    if !identity::is_root() {
        return Err(Error::ChrootNeedsRoot);
    }
    supervisor::fork()
}

/// Moves the forked process into the share. Returns the new root and the process's
/// `/proc/self/fd`.
pub(super) fn enter(share: &OwnedFd) -> Result<(OwnedFd, OwnedFd), Error> {
    let failed = |what| {
        move |error: Errno| Error::Chroot {
            what,
            source: error.into(),
        }
    };
    // Not part of what was asked for, but nothing in here has business with a network. It takes
    // CAP_SYS_ADMIN, which chroot itself does not.
    if let Err(error) = unshare(UnshareFlags::NEWNET) {
        log::debug!("staying in the host's network namespace: {error}");
    }
    let proc_self_fd = proc_self::open()?;
    rustix::process::fchdir(share.as_fd()).map_err(failed("enter the shared directory"))?;
    rustix::process::chroot(".").map_err(failed("make the shared directory the root"))?;
    rustix::process::chdir("/").map_err(failed("enter the new root"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::openat(CWD, "/", flags, Mode::empty()).map_err(failed("open the new root"))?;
    Ok((root, proc_self_fd))
}
