//! Confines the daemon before it reads the first byte from a guest.
//!
//! [`rlimit`] comes first, while the process may still raise limits. [`confine`] does the rest, in
//! the order of its body: the process moves to where it reaches nothing but the share, drops all
//! capabilities it does not need, and installs the list of permitted system calls.
//!
//! ```text
//! gangplankd ─┬─ fork ── supervisor: stays outside, forwards signals, removes the socket
//!             └─ child:  namespaces ─ pivot_root │ chroot ─ capabilities ─ seccomp ─ serves
//! ```
//!
//! With `--sandbox=none` the process neither forks nor moves.

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

/// The descriptors and permissions of the confined process.
#[derive(Debug)]
pub struct Confined {
    /// The shared directory, `O_PATH`. The daemon reaches every file relative to it.
    pub root: OwnedFd,
    /// This process's `/proc/self/fd`, `O_PATH`. `openat` of a descriptor's number here reopens the
    /// descriptor.
    pub proc_self_fd: OwnedFd,
    /// Whether threads may set their user and group ids to those of a guest's caller. If not, the
    /// daemon's user does everything and owns every new file.
    pub can_change_credentials: bool,
    /// Whether `open_by_handle_at` is permitted.
    pub can_open_by_handle: bool,
}

/// The role of the calling process after [`confine`].
#[derive(Debug)]
pub enum Role {
    /// Confined; it serves the guests.
    Confined(Confined),
    /// Outside of the sandbox; it watches the confined process.
    Supervisor(Supervisor),
}

/// A mechanism of the sandbox that fails, and what the operator can pass instead.
#[derive(Debug, Error)]
pub enum Error {
    /// The shared directory cannot be opened.
    #[error("cannot open shared directory {path:?}")]
    SharedDir {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The kernel refuses the limit of open descriptors.
    #[error(
        "cannot set the limit of open descriptors to {limit}: pass a --rlimit-nofile within the \
         hard limit, or 0 to leave it alone"
    )]
    Limit {
        /// The requested limit.
        limit: u64,
        /// The cause.
        source: io::Error,
    },
    /// The requested limit is above the kernel's.
    #[error(
        "--rlimit-nofile={limit} is above the kernel's limit of {max} (/proc/sys/fs/nr_open): \
         pass a lower one"
    )]
    LimitTooHigh {
        /// The requested limit.
        limit: u64,
        /// The kernel's limit.
        max: u64,
    },
    /// The limit in force does not suffice for one guest.
    #[error(
        "the limit of open descriptors is {limit}, at least {min} are needed: raise it (ulimit -n, \
         LimitNOFILE=) or pass --rlimit-nofile"
    )]
    LimitTooLow {
        /// The limit in force.
        limit: u64,
        /// The lowest limit that suffices.
        min: u64,
    },
    /// The operator's supplementary groups cannot be dropped.
    #[error("cannot drop the supplementary groups")]
    Groups(#[source] io::Error),
    /// The second process cannot be started.
    #[error("cannot start the confined process")]
    Fork(#[source] io::Error),
    /// The first process died before the second one was ready.
    #[error("the supervisor process has died")]
    Orphaned,
    /// The confined process cannot be watched.
    #[error("cannot wait for the confined process")]
    Supervise(#[source] io::Error),
    /// An ordinary user cannot create a user namespace.
    #[error(
        "cannot {what} the user namespace an ordinary user needs for --sandbox=namespace: allow \
         user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns) or pass --sandbox=none"
    )]
    UserNamespace {
        /// The step that failed.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The other namespaces cannot be created.
    #[error(
        "cannot create {what} for --sandbox=namespace: it takes CAP_SYS_ADMIN; pass \
         --sandbox=chroot or --sandbox=none"
    )]
    Namespaces {
        /// The namespaces.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The share cannot become the root of the mount namespace.
    #[error(
        "cannot {what} for --sandbox=namespace: pass --sandbox=chroot (as root) or --sandbox=none"
    )]
    Pivot {
        /// The step that failed.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// An ordinary user requested chroot.
    #[error("--sandbox=chroot needs root: pass --sandbox=namespace or --sandbox=none")]
    ChrootNeedsRoot,
    /// The share cannot become the root by chroot.
    #[error("cannot {what} for --sandbox=chroot: it takes CAP_SYS_CHROOT; pass --sandbox=none")]
    Chroot {
        /// The step that failed.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// `/proc/self/fd` cannot be opened.
    #[error("cannot open /proc/self/fd: mount /proc")]
    ProcSelfFd(#[source] io::Error),
    /// Descriptors cannot be reopened.
    #[error("cannot open the shared directory through /proc/self/fd")]
    Reopen(#[source] io::Error),
    /// `--modcaps` adds a capability that the process does not have.
    #[error(
        "--modcaps adds {0}, which this process does not have: start it with that capability or \
         leave it out"
    )]
    CapabilityMissing(caps::Capability),
    /// A capability set cannot be changed.
    #[error("cannot reduce the {set} capabilities")]
    Capabilities {
        /// The capability set.
        set: &'static str,
        /// The cause.
        source: caps::errors::CapsError,
    },
    /// `no_new_privs` cannot be set.
    #[error("cannot set no_new_privs")]
    NoNewPrivileges(#[source] io::Error),
    /// The list of system calls does not compile.
    #[error("cannot compile the list of system calls")]
    SeccompList(#[source] seccompiler::BackendError),
    /// The kernel refuses the list of system calls.
    #[error(
        "cannot install the list of system calls: pass --seccomp=none if the kernel has no seccomp"
    )]
    SeccompInstall(#[source] seccompiler::Error),
}

/// Drops every permission that serving `shared_dir` does not need. `keep_handles` keeps the
/// capability to open files by handle.
///
/// The caller must be single-threaded and have opened the listening socket, the log and the signal
/// descriptor: the confined process reaches nothing outside the share.
///
/// # Errors
/// The first mechanism that fails. None is skipped silently.
pub fn confine(options: &Options, keep_handles: bool, shared_dir: &Path) -> Result<Role, Error> {
    // Opened before the fork, so that the process that the operator started reports a mistyped path.
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

    // The guest decides the permissions of new files.
    rustix::process::umask(FileMode::empty());
    let kept = capabilities::reduce(&options.modcaps, keep_handles)?;
    rustix::thread::set_no_new_privs(true).map_err(|error| Error::NoNewPrivileges(error.into()))?;

    // The file system opens every file this way, so a failure must show before a guest connects.
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

/// Whether `open_by_handle_at` works, found by trying: the permission that it needs has changed
/// between kernel versions. A root whose file system has no handles says nothing about the file
/// systems mounted below it, so then the capability decides.
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
