//! `--sandbox=namespace`: new mount, process and network namespaces, inside a new user namespace
//! for an ordinary user.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::thread::UnshareFlags;

use super::error::Error;
use super::{
    identity, pivot, proc_self,
    supervisor::{self, Supervisor},
};
use crate::sys::process::unshare;

/// Starts the confined process as the first one of a new process namespace. Returns `None` in it.
///
/// The calling process keeps its namespaces, except that an ordinary user's process enters the new
/// user namespace as well. It remains the same user to the outside.
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

/// Moves the forked process into its namespaces. Returns the shared directory, now the root, and
/// the process's `/proc/self/fd`.
pub(super) fn enter(shared_dir: &Path) -> Result<(OwnedFd, OwnedFd), Error> {
    unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET).map_err(|source| Error::Namespaces {
        what: "mount and network namespaces",
        source,
    })?;
    let proc_self_fd = proc_self::open()?;
    let root = pivot::pivot_into(shared_dir)?;
    Ok((root, proc_self_fd))
}

/// Enters a new user namespace that maps only the user and its group, each to the same id.
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
