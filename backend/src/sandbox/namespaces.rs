//! `--sandbox=namespace`: new mount, process and network namespaces, inside a new user namespace
//! for an ordinary user. Each keeper is the first process of a process namespace, so the kernel
//! ends a guest's processes with it, and they see no others.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use gangplank_service::error_chain;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::error::Error;
use super::options::Options;
use super::{identity, pivot, proc_self, user_namespace};
use crate::sys::process::{self, Forked, WatchedFork, unshare};

/// Starts the confined process. For an ordinary user that is in a user namespace: the given one, or
/// a new one. It remains the same user to the outside.
///
/// The calling process keeps its namespaces, except that it enters the given one. With
/// `as_sibling`, the new process is a child of its parent, and it is an ordinary user's only with a
/// user namespace.
///
/// # Errors
/// The kernel refuses, or `options` maps ids although root needs no user namespace.
pub(super) fn fork(
    options: &Options,
    user_namespace: Option<&OwnedFd>,
    as_sibling: bool,
) -> Result<Forked, Error> {
    if identity::is_root() {
        return match options.mapped_ids() {
            None => start(as_sibling),
            Some(option) => Err(Error::MapAsRoot(option)),
        };
    }
    let forked = match user_namespace {
        Some(namespace) => {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User)).map_err(
                |error| Error::UserNamespace {
                    what: "enter",
                    source: error.into(),
                },
            )?;
            start(as_sibling)?
        }
        None => launch(|| {
            user_namespace::enter(options)?;
            start(true)
        })?,
    };
    if matches!(forked, Forked::Child) {
        user_namespace::become_root(options)?;
    }
    Ok(forked)
}

fn start(as_sibling: bool) -> Result<Forked, Error> {
    let forked = match as_sibling {
        true => process::fork_sibling(),
        false => process::fork(),
    };
    forked.map_err(Error::Fork)
}

/// Has another process, which may change its namespaces, make a child of the calling one by
/// `start`. Returns in that child as well.
fn launch(start: impl FnOnce() -> Result<Forked, Error>) -> Result<Forked, Error> {
    let (mut launched, mut report) = io::pipe().map_err(Error::Fork)?;
    let launcher = match process::fork().map_err(Error::Fork)? {
        Forked::Parent(launcher) => launcher,
        Forked::Child => {
            drop(launched);
            let said = match start() {
                Ok(Forked::Child) => return Ok(Forked::Child),
                Ok(Forked::Parent(child)) => child.as_raw_nonzero().to_string(),
                Err(error) => error_chain(&error),
            };
            // If this fails, the operator's process has ended, and this one does in any case.
            let _ = report.write_all(said.as_bytes());
            process::exit(0)
        }
    };
    drop(report);
    let mut said = String::new();
    let read = launched.read_to_string(&mut said);
    while let Err(Errno::INTR) = waitpid(Some(launcher), WaitOptions::empty()) {}
    read.map_err(Error::Fork)?;
    let child = said.parse().ok().and_then(Pid::from_raw);
    child.map(Forked::Parent).ok_or(Error::Launch(said))
}

/// Checks that the calling process, which must have CAP_SYS_ADMIN, can start a process in a process
/// namespace, as its keepers will be.
///
/// # Errors
/// The kernel refuses, for example by user.max_pid_namespaces.
pub(super) fn check_process_namespace() -> Result<(), Error> {
    match process::fork_watched_sibling(true) {
        Ok(WatchedFork::Child) => process::exit(0),
        Ok(WatchedFork::Parent(..)) => Ok(()),
        Err(source) => Err(Error::Namespaces {
            what: "a process namespace",
            source,
        }),
    }
}

/// The calling process's user namespace.
pub(super) fn user_namespace() -> Result<OwnedFd, Error> {
    let opened = open_namespace(CWD, "/proc/self/ns/user");
    opened.map_err(|error| Error::UserNamespace {
        what: "open",
        source: error.into(),
    })
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
/// the share is the root; into the one of the keeper before, if there was one. Returns the root,
/// and the namespace's `/proc`, which is outside the root. Errors name `shared_dir`.
pub(super) fn enter_guest(
    earlier: Option<OwnedFd>,
    shared_dir: &Path,
) -> Result<(OwnedFd, OwnedFd), Error> {
    match &earlier {
        None => new_namespaces(UnshareFlags::NEWNS, "a mount namespace")?,
        Some(namespace) => {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount)).map_err(
                |error| Error::Namespaces {
                    what: "a guest's mount namespace anew",
                    source: error.into(),
                },
            )?;
        }
    }
    let proc = proc_self::open_proc()?;
    Ok((pivot::enter_guest_root(shared_dir)?, proc))
}

/// The mount namespace of a keeper, whose working directory is `/proc`.
pub(super) fn mount_namespace() -> Result<OwnedFd, Error> {
    open_namespace(CWD, "self/ns/mnt").map_err(|error| Error::ProcSelfFd(error.into()))
}

fn open_namespace(directory: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, path, flags, Mode::empty())
}

fn new_namespaces(namespaces: UnshareFlags, what: &'static str) -> Result<(), Error> {
    unshare(namespaces).map_err(|source| Error::Namespaces { what, source })
}
