//! `--sandbox=namespace`: mount, process and network namespaces of its own, for an ordinary user
//! inside a user namespace.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::thread::UnshareFlags;

use super::{Error, Supervisor, identity, pivot, proc_self, supervisor};
use crate::sys::process::unshare;

/// Starts the confined process, first process of a new process namespace. It gets `None`.
///
/// The calling process stays in all its namespaces but one: an ordinary user's is in the new user
/// namespace too, where it is still the same user to everything outside.
pub(super) fn fork() -> Result<Option<Supervisor>, Error> {
    if !identity::is_root() {
        enter_user_namespace()?;
    }
    unshare(UnshareFlags::NEWPID).map_err(|source| Error::Namespaces {
        what: "a process namespace",
        source,
    })?;
    supervisor::fork()
}

/// Moves the forked process away. Returns the shared directory, now the root, and the process's
/// `/proc/self/fd`.
pub(super) fn enter(shared_dir: &Path) -> Result<(OwnedFd, OwnedFd), Error> {
    unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET).map_err(|source| Error::Namespaces {
        what: "mount and network namespaces",
        source,
    })?;
    let proc_self_fd = proc_self::open()?;
    let root = pivot::pivot_into(shared_dir)?;
    Ok((root, proc_self_fd))
}

/// A user namespace in which nobody exists but the user, under the same number.
fn enter_user_namespace() -> Result<(), Error> {
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let failed = |what| move |source: io::Error| Error::UserNamespace { what, source };
    unshare(UnshareFlags::NEWUSER).map_err(failed("create"))?;
    // An ordinary user may map a group only after giving up setgroups (user_namespaces(7)).
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{user} {user} 1")),
        ("gid_map", format!("{group} {group} 1")),
    ] {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(failed("map the user in"))?;
    }
    Ok(())
}
