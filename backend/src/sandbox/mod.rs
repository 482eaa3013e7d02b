//! What the daemon gives up before it reads the first guest byte.
//!
//! [`rlimit`] come first, while the process may still raise them. [`confine`] then does the rest in
//! one order, written down in its body: the process moves to where nothing but the share can be
//! reached, keeps the capabilities it needs, and installs the list of system calls it may make.
//!
//! ```text
//! gangplankd ─┬─ fork ── supervisor: waits outside, passes signals on, removes the socket
//!             └─ child:  namespaces ─ pivot_root │ chroot ─ capabilities ─ seccomp ─ serves
//! ```
//!
//! With `--sandbox=none` nothing is forked and the process stays where it is.

mod capabilities;
mod chroot;
mod identity;
mod namespaces;
pub mod options;
mod pivot;
mod proc_self;
pub mod rlimit;
mod seccomp;
mod supervisor;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode as FileMode, OFlags};
use thiserror::Error;

use crate::sys::file_handle::FileHandle;
use options::Mode;
pub use options::Options;
pub use supervisor::Supervisor;

/// A confined process's hold on what it shares.
#[derive(Debug)]
pub struct Confined {
    /// The shared directory, `O_PATH`. Everything else is reached relative to it.
    pub root: OwnedFd,
    /// This process's own `/proc/self/fd`, `O_PATH`: a descriptor is opened anew by `openat` of
    /// its number here.
    pub proc_self_fd: OwnedFd,
    /// Threads may take on the user and group numbers of a guest's caller. If not, everything is
    /// done, and every file made, as the daemon's own user.
    pub can_change_credentials: bool,
    /// `open_by_handle_at` is permitted.
    pub can_open_by_handle: bool,
}

/// Which process this is after [`confine`].
#[derive(Debug)]
pub enum Role {
    /// The one that serves, confined.
    Confined(Confined),
    /// The one that stays outside, where there are two.
    Supervisor(Supervisor),
}

/// A mechanism that cannot be had, and what to pass instead.
#[derive(Debug, Error)]
pub enum Error {
    /// The directory to share.
    #[error("cannot open shared directory {path:?}")]
    SharedDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The limit of open descriptors.
    #[error(
        "cannot set the limit of open descriptors to {limit}: pass a --rlimit-nofile within the hard limit, or 0 to leave it alone"
    )]
    Limit {
        /// The limit wanted.
        limit: u64,
        /// Why.
        source: io::Error,
    },
    /// The limit asked for is above the kernel's.
    #[error("--rlimit-nofile={limit} is above the kernel's limit of {max} (/proc/sys/fs/nr_open)")]
    LimitTooHigh {
        /// The limit wanted.
        limit: u64,
        /// The most the kernel allows.
        max: u64,
    },
    /// Too few descriptors to serve anybody.
    #[error(
        "the limit of open descriptors is {limit}, at least {min} are needed: raise it (ulimit -n, LimitNOFILE=) or pass --rlimit-nofile"
    )]
    LimitTooLow {
        /// The limit in force.
        limit: u64,
        /// The least that makes sense.
        min: u64,
    },
    /// The other groups of the operator.
    #[error("cannot give up the supplementary groups")]
    Groups(#[source] io::Error),
    /// The second process.
    #[error("cannot start the confined process")]
    Fork(#[source] io::Error),
    /// The first process went away meanwhile.
    #[error("the process that watches over this one has died")]
    Orphaned,
    /// The confined process cannot be watched.
    #[error("cannot wait for the confined process")]
    Supervise(#[source] io::Error),
    /// A user namespace, for an ordinary user.
    #[error(
        "cannot {what} the user namespace an ordinary user needs for --sandbox=namespace: allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns) or pass --sandbox=none"
    )]
    UserNamespace {
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Other namespaces.
    #[error(
        "cannot create {what} for --sandbox=namespace: it takes CAP_SYS_ADMIN; pass --sandbox=chroot or --sandbox=none"
    )]
    Namespaces {
        /// Which ones.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Making the share the root of the mount namespace.
    #[error(
        "cannot {what} for --sandbox=namespace: pass --sandbox=chroot (as root) or --sandbox=none"
    )]
    Pivot {
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// chroot by an ordinary user.
    #[error("--sandbox=chroot is root's alone: pass --sandbox=namespace or --sandbox=none")]
    ChrootNeedsRoot,
    /// chroot itself.
    #[error("cannot {what} for --sandbox=chroot: it takes CAP_SYS_CHROOT; pass --sandbox=none")]
    Chroot {
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The process's own descriptors under /proc.
    #[error("cannot open /proc/self/fd: /proc must be mounted")]
    ProcSelfFd(#[source] io::Error),
    /// Descriptors cannot be opened anew.
    #[error("cannot open the shared directory through /proc/self/fd")]
    Reopen(#[source] io::Error),
    /// A capability asked for that cannot be kept.
    #[error(
        "--modcaps adds {0}, which this process does not have: start it with that capability or leave it out"
    )]
    CapabilityMissing(caps::Capability),
    /// Capabilities.
    #[error("cannot reduce the {set} capabilities")]
    Capabilities {
        /// Which set.
        set: &'static str,
        /// Why.
        source: caps::errors::CapsError,
    },
    /// no_new_privs.
    #[error("cannot set no_new_privs")]
    NoNewPrivileges(#[source] io::Error),
    /// The list does not compile.
    #[error("cannot compile the list of system calls")]
    SeccompList(#[source] seccompiler::BackendError),
    /// The list is not accepted.
    #[error(
        "cannot install the list of system calls: pass --seccomp=none where the kernel has no seccomp"
    )]
    SeccompInstall(#[source] seccompiler::Error),
}

/// Gives up everything that serving `shared_dir` does not take. `keep_handles`: file handles are to
/// be opened, and the capability for it is kept.
///
/// To be called with a single thread, after the listening socket, the log and the signal descriptor
/// are there: nothing outside can be opened afterwards.
///
/// # Errors
/// The first mechanism that cannot be had. Nothing is left out silently.
pub fn confine(options: &Options, keep_handles: bool, shared_dir: &Path) -> Result<Role, Error> {
    // A mistyped directory is told by the process the operator started.
    let share = open_share(shared_dir)?;
    identity::drop_supplementary_groups()?;
    let ids = identity::mapped_ids();

    let (root, proc_self_fd) = match options.mode {
        Mode::None => (share, proc_self::open()?),
        Mode::Chroot => match chroot::fork()? {
            Some(supervisor) => return Ok(Role::Supervisor(supervisor)),
            None => chroot::enter(&share)?,
        },
        Mode::Namespace => match namespaces::fork()? {
            Some(supervisor) => return Ok(Role::Supervisor(supervisor)),
            None => {
                drop(share);
                namespaces::enter(shared_dir)?
            }
        },
    };

    // The guest says which permissions a new file has.
    rustix::process::umask(FileMode::empty());
    let kept = capabilities::reduce(&options.modcaps, keep_handles)?;
    rustix::thread::set_no_new_privs(true).map_err(|error| Error::NoNewPrivileges(error.into()))?;

    // Every file is opened this way, so it is tried before a guest does.
    let mount = proc_self::reopen(&proc_self_fd, &root)?;
    let namespaced_user = options.mode == Mode::Namespace && !identity::is_root();
    let confined = Confined {
        can_change_credentials: ids.more_than_one()
            && !namespaced_user
            && capabilities::can_change_credentials(&kept),
        can_open_by_handle: keep_handles
            && can_open_by_handle(&mount, ids.initial && !namespaced_user, &kept),
        root,
        proc_self_fd,
    };
    seccomp::install(options.seccomp)?;
    Ok(Role::Confined(confined))
}

fn open_share(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, FileMode::empty()).map_err(|error| Error::SharedDir {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// Tries it, for what permits it has changed over kernel versions. A root without handles says
/// nothing about file systems below it, so there the capability decides.
fn can_open_by_handle(root: &OwnedFd, initial_user: bool, kept: &caps::CapsHashSet) -> bool {
    let tried =
        FileHandle::of(root.as_fd()).and_then(|handle| handle.open(root.as_fd(), libc::O_PATH));
    match tried {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            initial_user && kept.contains(&caps::Capability::CAP_DAC_READ_SEARCH)
        }
        Err(_) => false,
    }
}
