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

/// Moves the forked process into its namespaces, whose root holds nothing but the share and
/// `/proc`. Returns the shared directory.
pub(super) fn enter(shared_dir: &Path) -> Result<OwnedFd, Error> {
    new_namespaces(
        UnshareFlags::NEWNS | UnshareFlags::NEWNET,
        "mount and network namespaces",
    )?;
    pivot::enter_acceptor_root(shared_dir)
}

/// Moves a keeper, and the workers that it starts, into a mount namespace of their own, in which
/// the share is the root. Returns the root, and the namespace's `/proc`, which is outside the root.
pub(super) fn enter_guest() -> Result<(OwnedFd, OwnedFd), Error> {
    new_namespaces(UnshareFlags::NEWNS, "a mount namespace")?;
    let proc = proc_self::open_proc()?;
    Ok((pivot::enter_guest_root()?, proc))
}

fn new_namespaces(namespaces: UnshareFlags, what: &'static str) -> Result<(), Error> {
    unshare(namespaces).map_err(|source| Error::Namespaces { what, source })
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
