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
mod error;
mod identity;
mod namespaces;
pub mod options;
mod pivot;
mod proc_self;
pub mod rlimit;
mod seccomp;
mod supervisor;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode as FileMode, OFlags};

use crate::sys::file_handle::FileHandle;
pub use error::Error;
use options::Mode;
pub use options::Options;
pub use supervisor::Supervisor;

/// The descriptors and permissions of the confined process.
#[derive(Debug)]
pub struct Confined {
    /// The shared directory, `O_PATH`. The daemon reaches every file relative to it.
    pub root: OwnedFd,
    /// This process's `/proc/self/fd`, `O_PATH`. `openat` of a descriptor's number in it reopens
    /// the descriptor.
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

/// Drops every permission that serving `shared_dir` does not need. `keep_handles` keeps the
/// capability to open files by handle.
///
/// The caller must be single-threaded and have opened the listening socket, the log and the signal
/// descriptor: the confined process reaches nothing outside the share.
///
/// # Errors
/// The first mechanism that fails. None is skipped silently.
pub fn confine(options: &Options, keep_handles: bool, shared_dir: &Path) -> Result<Role, Error> {
    // Before the fork, so that the process that the operator started reports a mistyped path.
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
