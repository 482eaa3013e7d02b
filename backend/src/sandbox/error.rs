//! Why the daemon cannot be confined.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What to do about a directory that `user` cannot use, for the end of a message. Empty where the
/// cause says it.
fn what_to_do(error: &io::Error, user: u32) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            " as user {user} (let that user read and search it, and search the directories above \
             it)"
        ),
        _ if error.raw_os_error() == Some(libc::EMFILE) => {
            " (raise the limit of open descriptors: --rlimit-nofile)".to_owned()
        }
        _ if error.raw_os_error() == Some(libc::EIO) => {
            " (see whether it can be listed on the host)".to_owned()
        }
        _ => String::new(),
    }
}

/// A mechanism of the sandbox that fails, and what the operator can pass instead.
#[derive(Debug, Error)]
pub enum Error {
    /// A worker has replaced the shared directory's descriptor.
    #[error(
        "the descriptor of shared directory {0:?} has become another: a worker was taken over; end \
         the guest, and see what it ran"
    )]
    RootReplaced(PathBuf),
    /// The shared directory cannot be used.
    #[error("cannot {what} shared directory {path:?}{}", what_to_do(source, *user))]
    SharedDir {
        /// What was being done to it.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// The user that the operator has started the daemon as.
        user: u32,
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
    #[error(
        "cannot start the confined process: see the limits of processes (ulimit -u, TasksMax= of a \
         unit) and free memory"
    )]
    Fork(#[source] io::Error),
    /// The process that starts the confined one has failed, for this reason.
    #[error("{0}")]
    Launch(String),
    /// The first process died before the second one was ready.
    #[error("the supervisor process has died")]
    Orphaned,
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
    /// The ids of an ordinary user's namespace cannot be mapped.
    #[error("cannot map the ids of the user namespace: {0}")]
    MapIds(String),
    /// Root maps ids.
    #[error(
        "{0} is for an ordinary user, whom --sandbox=namespace moves to a user namespace: leave it \
         out, or use --translate-uid and --translate-gid"
    )]
    MapAsRoot(&'static str),
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
        "cannot {what} for --sandbox=namespace, to share {shared_dir:?}: pass --sandbox=chroot (as \
         root) or --sandbox=none"
    )]
    Pivot {
        /// The step that failed.
        what: &'static str,
        /// The shared directory.
        shared_dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An ordinary user requested chroot.
    #[error("--sandbox=chroot needs root: pass --sandbox=namespace or --sandbox=none")]
    ChrootNeedsRoot,
    /// The share cannot become the root by chroot.
    #[error(
        "cannot {what} for --sandbox=chroot, to share {shared_dir:?}: it takes CAP_SYS_CHROOT; \
         pass --sandbox=none"
    )]
    Chroot {
        /// The step that failed.
        what: &'static str,
        /// The shared directory.
        shared_dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// `/proc/self/fd` cannot be opened.
    #[error("cannot open /proc/self/fd: mount /proc")]
    ProcSelfFd(#[source] io::Error),
    /// Descriptors cannot be reopened.
    #[error(
        "cannot open shared directory {path:?} through /proc/self/fd{}",
        what_to_do(source, *user)
    )]
    Reopen {
        /// The directory.
        path: PathBuf,
        /// The user that the operator has started the daemon as.
        user: u32,
        /// The cause.
        source: io::Error,
    },
    /// `--modcaps` adds a capability that the process does not have.
    #[error(
        "--modcaps adds {0}, which this process does not have: start it with that capability or \
         leave it out"
    )]
    CapabilityMissing(caps::Capability),
    /// A mechanism of the kernel fails.
    #[error(transparent)]
    Confine(#[from] gangplank_sandbox::Error),
}
