//! `--sandbox=chroot`: the shared directory as the process's root, for hosts without namespaces.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::UnshareFlags;

use super::error::Error;
use super::identity;
use crate::sys::process::unshare;

/// Whether this process may do that.
pub(super) fn check() -> Result<(), Error> {
    match identity::is_root() {
        true => Ok(()),
        false => Err(Error::ChrootNeedsRoot),
    }
}

/// Moves the forked process into the share. Returns the new root. Errors name `shared_dir`.
pub(super) fn enter(share: &OwnedFd, shared_dir: &Path) -> Result<OwnedFd, Error> {
    let failed = |what| {
        move |error: Errno| Error::Chroot {
            what,
            shared_dir: shared_dir.to_owned(),
            source: error.into(),
        }
    };
    // An addition to chroot, since the daemon uses no network. It takes CAP_SYS_ADMIN, which chroot
    // does not, so a failure is no error.
    if let Err(error) = unshare(UnshareFlags::NEWNET) {
        log::debug!("cannot leave the host's network namespace: {error}");
    }
    rustix::process::fchdir(share.as_fd()).map_err(failed("enter the shared directory"))?;
    rustix::process::chroot(".").map_err(failed("make the shared directory the root"))?;
    rustix::process::chdir("/").map_err(failed("enter the new root"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, "/", flags, Mode::empty()).map_err(failed("open the new root"))
}
