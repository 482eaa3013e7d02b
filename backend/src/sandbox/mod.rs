//! Confines the daemon before it reads the first byte from a guest.
//!
//! [`rlimit`] comes first, while the process may still raise limits. [`confine`] does the rest, in
//! the order of its body: the process moves to where it reaches nothing but the share, drops all
//! capabilities it does not need, and installs the list of permitted system calls.
//!
//! ```text
//! gangplankd ─┬─ fork ── supervisor: stays outside, forwards signals, reloads, removes the socket
//!             └─ acceptor: namespaces ─ pivot_root │ chroot ─ capabilities ─ seccomp
//!                  └─ keeper of a guest: process and mount namespace ─ capabilities ─ seccomp
//!                       └─ worker: capabilities ─ landlock ─ seccomp ─ serves the guest
//! ```
//!
//! With `--sandbox=none` no process moves. The acceptor confines the keepers that it forks, but
//! they are the supervisor's children, and none ends with the acceptor.
//!
//! Lists of system calls, Landlock and the permitted capabilities can only become stricter, and a
//! process inherits them. So the acceptor's permit all that a keeper may do, and the keeper's all
//! that a worker does until it has confined itself: a keeper starts a worker again after a death.
//! What a keeper could do with that, it has no reason to do: it reads nothing from the guest, and
//! of what its worker writes only some numbers in the shared state. A worker confines itself before
//! it reads the first byte from the guest, or from the state that the worker before it has left.

mod capabilities;
mod chroot;
mod error;
mod identity;
mod landlock;
mod namespaces;
mod oom_score;
pub mod options;
mod pivot;
mod proc_self;
pub mod rlimit;
mod seccomp;
mod shared_dir;
mod supervisor;
mod user_namespace;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use caps::CapsHashSet;
use gangplank_sandbox::capabilities::{restrict, resume, suspend};
use gangplank_sandbox::landlock as rules;
use gangplank_service::peer_cred::{PeerCred, peer_pidfd};
use rustix::fs::{CWD, Mode as FileMode};
use rustix::process::{Pid, fchdir};

use crate::handover::channel::Channel;
use crate::passthrough::Abilities;
use crate::passthrough::options::InodeFileHandles;
use crate::sys::file;
use crate::sys::file_handle::FileHandle;
use crate::sys::process::{self, WatchedFork};
pub use error::Error;
pub use options::Options;
use options::{Mode, Seccomp};
use seccomp::Process;
use shared_dir::SharedDir;
use supervisor::Side;

/// What the acceptor needs to confine keepers, and what it found out about workers' permissions.
#[derive(Debug)]
pub struct Confined {
    shared_dir: SharedDir,
    /// The shared directory, `O_PATH`, as the acceptor sees it.
    root: OwnedFd,
    /// `/proc`, `O_PATH`.
    proc: OwnedFd,
    /// The user namespace, if it is an ordinary user's own.
    user_namespace: Option<OwnedFd>,
    mode: Mode,
    seccomp: Seccomp,
    events: bool,
    use_landlock: bool,
    /// The capabilities of a worker.
    kept: CapsHashSet,
    /// What a worker may do.
    pub abilities: Abilities,
}

/// What a keeper needs to confine workers.
#[derive(Debug)]
pub struct ConfinedKeeper {
    shared_dir: SharedDir,
    /// The shared directory, `O_PATH`, in the mount namespace of the keeper and its workers.
    root: OwnedFd,
    /// Whether the guest has a mount namespace of its own.
    has_mount_namespace: bool,
    /// What `root` was when the keeper was confined, in the keeper's own memory.
    root_identity: (u64, u32, u32, u64),
    seccomp: Seccomp,
    events: bool,
    use_landlock: bool,
    kept: CapsHashSet,
    /// What a worker may do.
    pub abilities: Abilities,
}

/// The descriptors of a confined worker.
#[derive(Debug)]
pub struct ConfinedWorker {
    /// The shared directory, `O_PATH`. The worker reaches every file relative to it.
    pub root: OwnedFd,
    /// The worker's `/proc/self/fd`, `O_PATH`. `openat` of a descriptor's number in it reopens the
    /// descriptor.
    pub proc_self_fd: OwnedFd,
}

/// The role of the calling process after [`confine`].
#[derive(Debug)]
pub enum Role {
    /// Confined; it accepts the guests' connections. With the channel to its supervisor.
    Acceptor(Confined, Channel),
    /// Outside of the sandbox, with the acceptor and the channel to it.
    Supervisor(Pid, Channel),
    /// It has started the acceptor for the supervisor of [`Start::Successor`].
    Launcher(Pid),
}

/// How a daemon starts.
#[derive(Debug)]
pub enum Start {
    /// By itself.
    First {
        /// The user namespace that processes had which have ended, and whose guests go on.
        user_namespace: Option<OwnedFd>,
    },
    /// Beside the processes that it takes guests over from.
    Successor {
        /// The calling process's parent, which supervises those.
        supervisor: Channel,
        /// The user namespace of those; `None` if they have none of their own.
        user_namespace: Option<OwnedFd>,
    },
}

/// Where an earlier keeper of a guest was.
#[derive(Debug)]
pub struct GuestPlace {
    /// The shared directory, `O_PATH`.
    pub root: OwnedFd,
    /// The mount namespace, with `--sandbox=namespace`.
    pub mount_namespace: Option<OwnedFd>,
}

/// Leaves the calling process, forked by the acceptor, what answering one client takes.
///
/// # Errors
/// The list of system calls cannot be installed.
pub fn confine_reporter(confined: &Confined) -> Result<(), Error> {
    seccomp::install(confined.seccomp, false, seccomp::Process::Reporter)
}

/// Drops every permission that serving `shared_dir` does not need.
///
/// The caller must be single-threaded and have opened the listening socket, the log and the signal
/// descriptor: the confined process reaches nothing outside the share.
///
/// # Errors
/// The first mechanism that fails. None is skipped silently.
pub fn confine(
    options: &Options,
    handles: InodeFileHandles,
    shared_dir: &Path,
    start: Start,
) -> Result<Role, Error> {
    // The first call reads the auxiliary vector, by calls that are not on any list.
    let _ = rustix::param::page_size();
    let keep_handles = handles != InodeFileHandles::Never;
    // Before the fork, so that the process that the operator started reports a mistyped path.
    let shared_dir = SharedDir::new(shared_dir);
    let share = shared_dir.open()?;
    identity::drop_supplementary_groups()?;
    let mut ids = identity::mapped_ids();

    if options.mode == Mode::Chroot {
        chroot::check()?;
    }
    let (supervisor, user_namespace) = match start {
        Start::First { user_namespace } => (None, user_namespace),
        Start::Successor {
            supervisor,
            user_namespace,
        } => (Some(supervisor), user_namespace),
    };
    let is_ordinary = options.mode == Mode::Namespace && !identity::is_root();
    let side = supervisor::fork(supervisor, |as_sibling| match (options.mode, as_sibling) {
        (Mode::Namespace, _) => namespaces::fork(options, user_namespace.as_ref(), as_sibling),
        (Mode::Chroot | Mode::None, false) => process::fork().map_err(Error::Fork),
        (Mode::Chroot | Mode::None, true) => process::fork_sibling().map_err(Error::Fork),
    })?;
    drop(user_namespace);
    let supervisor = match side {
        Side::Confined(supervisor) => supervisor,
        Side::Supervisor(acceptor, channel) => return Ok(Role::Supervisor(acceptor, channel)),
        Side::Launcher(acceptor) => return Ok(Role::Launcher(acceptor)),
    };
    let mut user_namespace = None;
    let (root, proc) = match options.mode {
        Mode::None => (share, proc_self::open_proc()?),
        Mode::Chroot => {
            let proc = proc_self::open_proc()?;
            (chroot::enter(&share, shared_dir.path())?, proc)
        }
        Mode::Namespace => {
            drop(share);
            // An ordinary user's are others now.
            ids = identity::mapped_ids();
            identity::drop_supplementary_groups()?;
            if is_ordinary {
                user_namespace = Some(namespaces::user_namespace()?);
            }
            // A failure must show before a guest connects.
            namespaces::check_process_namespace()?;
            let root = namespaces::enter(shared_dir.path())?;
            (root, proc_self::open_proc()?)
        }
    };

    oom_score::protect(&proc);
    // The guest decides the permissions of new files.
    rustix::process::umask(FileMode::empty());
    let kept = capabilities::reduce(
        &options.modcaps,
        keep_handles,
        options.mode == Mode::Namespace,
    )?;
    gangplank_sandbox::set_no_new_privs()?;

    // A worker opens every file this way, so a failure must show before a guest connects.
    let mount = proc_self::reopen(&proc_self::open(proc.as_fd())?, &root)
        .map_err(|error| shared_dir.cannot_reopen(error))?;
    let chosen = landlock::choose(
        options.mode,
        handles,
        keep_handles && can_open_by_handle(&mount, ids.initial, &kept),
    );
    let abilities = Abilities {
        can_change_credentials: ids.more_than_one() && capabilities::can_change_credentials(&kept),
        can_open_by_handle: chosen.handles,
    };
    drop(mount);
    suspend()?;
    seccomp::install(options.seccomp, options.events, Process::Acceptor)?;
    let confined = Confined {
        shared_dir,
        root,
        proc,
        user_namespace,
        mode: options.mode,
        seccomp: options.seccomp,
        events: options.events,
        use_landlock: chosen.landlock,
        kept,
        abilities,
    };
    Ok(Role::Acceptor(confined, supervisor))
}

/// Reduces the capabilities of the calling process, a supervisor or the one that starts several.
/// Before that, it protects the process from the out-of-memory killer, if it may: all guests end
/// with it.
///
/// # Errors
/// The kernel refuses.
pub fn reduce_supervisor() -> Result<(), Error> {
    if let Ok(proc) = proc_self::open_proc() {
        oom_score::protect(proc);
    }
    capabilities::reduce_supervisor()
}

impl Confined {
    /// Forks a process that is to be a keeper, as a child of the calling process's parent. With
    /// `--sandbox=namespace`, it is the first one of a new process namespace.
    ///
    /// # Errors
    /// Those of clone(2) and capset(2).
    pub fn fork_keeper(&self) -> io::Result<WatchedFork> {
        if self.mode != Mode::Namespace {
            return process::fork_watched_sibling(false);
        }
        resume().map_err(io::Error::other)?;
        let forked = process::fork_watched_sibling(true);
        // The new process has to be permitted more, and reduces that itself.
        if !matches!(forked, Ok(WatchedFork::Child)) {
            suspend().map_err(io::Error::other)?;
        }
        forked
    }

    /// Confines the calling process, a keeper that the acceptor has just forked. It enters the
    /// mount namespace of its guest and stays permitted what a worker does until it is confined.
    ///
    /// The working directory becomes the `/proc` by which workers open their own descriptors.
    /// Unlike a descriptor, a worker can give it up while the keeper keeps it.
    ///
    /// With `earlier`, the guest had another keeper, and its mounts and root stay what they are.
    ///
    /// # Errors
    /// The first mechanism that fails.
    pub fn confine_keeper(self, earlier: Option<GuestPlace>) -> Result<ConfinedKeeper, Error> {
        drop(self.user_namespace);
        let (root, proc) = match self.mode {
            Mode::Namespace => {
                drop((self.root, self.proc));
                resume()?;
                let namespace = earlier.and_then(|place| place.mount_namespace);
                namespaces::enter_guest(namespace, self.shared_dir.path())?
            }
            Mode::Chroot | Mode::None => {
                let root = earlier.map_or(self.root, |place| place.root);
                (root, self.proc)
            }
        };
        fchdir(&proc).map_err(|error| Error::ProcSelfFd(error.into()))?;
        drop(proc);
        capabilities::restrict_keeper(&self.kept)?;
        seccomp::install(self.seccomp, self.events, Process::Keeper)?;
        Ok(ConfinedKeeper {
            root_identity: identity_of(&root, &self.shared_dir)?,
            shared_dir: self.shared_dir,
            root,
            has_mount_namespace: self.mode == Mode::Namespace,
            seccomp: self.seccomp,
            events: self.events,
            use_landlock: self.use_landlock,
            kept: self.kept,
            abilities: self.abilities,
        })
    }

    /// The process and the user at the other end of a guest's connection, also for a keeper, whose
    /// process namespace does not have that process.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn peer_of(&self, connection: &UnixStream) -> io::Result<PeerCred> {
        let mut peer = PeerCred::of(connection)?;
        if peer.process.is_none()
            && let Ok(pidfd) = peer_pidfd(connection)
        {
            let process = proc_self::process_of(self.proc.as_fd(), &pidfd);
            // Else the user stands for its processes.
            peer.process = process.unwrap_or_default();
        }
        Ok(peer)
    }

    /// The user namespace of an ordinary user's processes.
    pub fn user_namespace(&self) -> Option<BorrowedFd<'_>> {
        self.user_namespace.as_ref().map(AsFd::as_fd)
    }
}

impl ConfinedKeeper {
    /// Confines the calling process, a worker that its keeper has just cloned: it reaches nothing
    /// but the share, has the capabilities of a file server, and makes no processes.
    ///
    /// # Errors
    /// The first mechanism that fails.
    pub fn confine_worker(&self) -> Result<ConfinedWorker, Error> {
        oom_score::unprotect(CWD);
        resume()?;
        let proc_self_fd = proc_self::open(CWD)?;
        fchdir(&self.root).map_err(self.shared_dir.cannot("enter"))?;
        // The keeper has the same descriptors and needs its own for the next worker.
        let root = self.another_root()?;
        // Workers share the table of descriptors, and one that was taken over could have put
        // another directory in its place.
        if identity_of(&root, &self.shared_dir)? != self.root_identity {
            return Err(Error::RootReplaced(self.shared_dir.path().to_owned()));
        }
        if self.use_landlock {
            rules::restrict(Some(root.as_fd()))?;
        }
        restrict(&self.kept)?;
        seccomp::install(self.seccomp, self.events, Process::Worker)?;
        Ok(ConfinedWorker { root, proc_self_fd })
    }

    /// Where the keeper is, for the next keeper.
    ///
    /// # Errors
    /// `/proc` cannot be read; no descriptor is left.
    pub fn place(&self) -> Result<GuestPlace, Error> {
        let namespace = self.has_mount_namespace.then(namespaces::mount_namespace);
        Ok(GuestPlace {
            root: self.another_root()?,
            mount_namespace: namespace.transpose()?,
        })
    }

    /// Gives the keeper's descriptors numbers from `lowest` on.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn move_descriptors(self, lowest: RawFd) -> Result<Self, Error> {
        let moved = process::move_up(self.root, lowest);
        let root = moved.map_err(self.shared_dir.cannot(DUPLICATE))?;
        Ok(Self { root, ..self })
    }

    fn another_root(&self) -> Result<OwnedFd, Error> {
        let cloned = self.root.try_clone();
        cloned.map_err(self.shared_dir.cannot(DUPLICATE))
    }

    /// The numbers of the calling process's descriptors.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn descriptors(&self) -> Result<Vec<RawFd>, Error> {
        proc_self::numbers(CWD)
    }
}

/// What is done to the shared directory, in the words of an error.
const DUPLICATE: &str = "duplicate the descriptor of";

/// Mount, device and inode number of the shared directory.
fn identity_of(root: &OwnedFd, shared_dir: &SharedDir) -> Result<(u64, u32, u32, u64), Error> {
    let stat = file::stat(root.as_fd()).map_err(shared_dir.cannot("read the attributes of"))?;
    let device = (stat.stx_dev_major, stat.stx_dev_minor);
    Ok((stat.stx_mnt_id, device.0, device.1, stat.stx_ino))
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
