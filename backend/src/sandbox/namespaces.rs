//! `--sandbox=namespace`: new mount, process and network namespaces, inside a new user namespace
//! for an ordinary user.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::thread::UnshareFlags;

use super::error::Error;
use super::options::Options;
use super::{
    identity, pivot, proc_self,
    supervisor::{self, Supervisor},
    user_namespace,
};
use crate::sys::process::unshare;

/// Starts the confined process as the first one of a new process namespace. Returns `None` in it.
///
/// The calling process keeps its namespaces, except that an ordinary user's process enters the new
/// user namespace as well. It remains the same user to the outside.
///
/// # Errors
/// The kernel refuses, or `options` maps ids although root needs no user namespace.
pub(super) fn fork(options: &Options) -> Result<Option<Supervisor>, Error> {
    if !identity::is_root() {
        user_namespace::enter(options)?;
    } else if let Some(option) = options.mapped_ids() {
        return Err(Error::MapAsRoot(option));
    }
    unshare(UnshareFlags::NEWPID).map_err(|source| Error::Namespaces {
        what: "a process namespace",
        source,
    })?;
    let supervisor = supervisor::fork()?;
    if supervisor.is_none() {
        user_namespace::become_root(options)?;
    }
    Ok(supervisor)
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
