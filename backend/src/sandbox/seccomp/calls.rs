//! The system calls that each confined process may make, as data.
//!
//! One list covers both C libraries (glibc, musl) and both architectures: it has every variant of a
//! call that one of the libraries uses, except those that the architecture does not have.

#[cfg(target_arch = "x86_64")]
use gangplank_sandbox::seccomp::common::X86_64;
use gangplank_sandbox::seccomp::common::{
    self, CLONE3, ENDING, EVENTS, MEMORY, SIGNALS, SOCKETS, THREADS, TIME, WAITING,
};
use gangplank_sandbox::seccomp::{CallList, Conditional};
use libc::c_long;

use crate::sys::file_ioctl;

// The libc crate lacks these numbers for some targets. They are the same on all architectures
// (include/uapi/asm-generic/unistd.h).
const SYS_FCHMODAT2: c_long = 452;
const SYS_SETXATTRAT: c_long = 463;
const SYS_GETXATTRAT: c_long = 464;
const SYS_LISTXATTRAT: c_long = 465;
const SYS_REMOVEXATTRAT: c_long = 466;

/// The process whose list it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum Process {
    /// Accepts connections and forks keepers. Keepers and workers inherit its list, so it permits
    /// what they need.
    Acceptor,
    /// Starts a worker, which inherits its list, and waits for it.
    Keeper,
    /// Serves one guest.
    Worker,
    /// Answers one client that asks for the status.
    Reporter,
}

/// The list of a process. With `events`, workers may watch directories (`--events`).
pub(super) fn list(process: Process, events: bool) -> CallList {
    let mut allowed = allowed(process).to_vec();
    if events && process != Process::Reporter {
        allowed.push(WATCHING);
    }
    CallList {
        allowed,
        conditional: conditional(process),
        refused: REFUSED.to_vec(),
    }
}

/// The calls that a process may make with any arguments.
pub(super) const fn allowed(process: Process) -> &'static [&'static [c_long]] {
    match process {
        Process::Acceptor => ACCEPTOR,
        Process::Keeper => KEEPER,
        Process::Worker => WORKER,
        Process::Reporter => REPORTER,
    }
}

const WORKER: &[&[c_long]] = &[
    FILES,
    DATA,
    ATTRIBUTES,
    CREDENTIALS,
    THREADS,
    ENDING,
    MEMORY,
    EVENTS,
    TIMERS,
    SOCKETS,
    TIME,
    SIGNALS,
    #[cfg(target_arch = "x86_64")]
    X86_64,
];

const ACCEPTOR: &[&[c_long]] = &[
    FILES,
    DATA,
    ATTRIBUTES,
    CREDENTIALS,
    THREADS,
    MEMORY,
    EVENTS,
    TIMERS,
    SOCKETS,
    ENDING,
    WAITING,
    CONFINING_WORKER,
    CONFINING_KEEPER,
    STOPPING_WORKER,
    SIGNAL_SENDING,
    TIME,
    SIGNALS,
    #[cfg(target_arch = "x86_64")]
    X86_64,
    #[cfg(target_arch = "x86_64")]
    X86_64_FORK,
];

/// What a worker does, and what a keeper needs to start workers and to wait for them.
const KEEPER: &[&[c_long]] = &[
    FILES,
    DATA,
    ATTRIBUTES,
    CREDENTIALS,
    THREADS,
    MEMORY,
    EVENTS,
    TIMERS,
    SOCKETS,
    ENDING,
    WAITING,
    CONFINING_WORKER,
    STOPPING_WORKER,
    SIGNAL_SENDING,
    TIME,
    SIGNALS,
    #[cfg(target_arch = "x86_64")]
    X86_64,
];

/// What the process for a client does: it copies guests' counters, and talks to the client.
const REPORTER: &[&[c_long]] = &[
    REPORTING,
    ENDING,
    MEMORY,
    EVENTS,
    TIME,
    SIGNALS,
    #[cfg(target_arch = "x86_64")]
    X86_64,
];

/// Descriptors that are open or passed.
const REPORTING: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_pread64,
    // The log.
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
];

/// Names and descriptors below the share.
const FILES: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_flock,
    libc::SYS_name_to_handle_at,
    // Reopens evicted inodes. The kernel refuses it without CAP_DAC_READ_SEARCH.
    libc::SYS_open_by_handle_at,
    libc::SYS_readlinkat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mknodat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    // For extended attributes of files that cannot be opened: the path is relative to the working
    // directory.
    libc::SYS_fchdir,
    libc::SYS_getdents64,
    libc::SYS_syncfs,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
];

/// Changes in directories.
pub(super) const WATCHING: &[c_long] = &[libc::SYS_fanotify_init, libc::SYS_fanotify_mark];

/// Contents of files.
const DATA: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    // Replies to the frontend, from a pipe to its socket.
    libc::SYS_splice,
    libc::SYS_ftruncate,
    // Requests in flight (GET_INFLIGHT_FD).
    libc::SYS_memfd_create,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
];

/// Attributes of files.
const ATTRIBUTES: &[c_long] = &[
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_fgetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_listxattr,
    libc::SYS_removexattr,
    SYS_GETXATTRAT,
    SYS_SETXATTRAT,
    SYS_LISTXATTRAT,
    SYS_REMOVEXATTRAT,
];

/// Credentials: a thread acts as its guest's caller.
const CREDENTIALS: &[c_long] = &[
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    // A thread drops CAP_FSETID for a write that must clear set-user-ID bits, then raises it again.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_umask,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
];

/// Timers, on which the rings of a guest with limits wait.
const TIMERS: &[c_long] = &[libc::SYS_timerfd_create, libc::SYS_timerfd_settime];

/// What a worker does before it installs its own list.
const CONFINING_WORKER: &[c_long] = &[
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_open_tree,
    libc::SYS_getppid,
    // glibc registers a forked process's thread anew.
    libc::SYS_set_tid_address,
];

/// What a keeper does before it installs its own list: it enters the guest's mount namespace.
const CONFINING_KEEPER: &[c_long] = &[libc::SYS_chroot];

/// How a keeper stops its worker for the next program. The worker's number is known only once it
/// exists.
const STOPPING_WORKER: &[c_long] = &[libc::SYS_kill];

/// Signals to threads of any process. Its number is known only once the process exists.
const SIGNAL_SENDING: &[c_long] = &[libc::SYS_tgkill];

/// musl's fork().
#[cfg(target_arch = "x86_64")]
const X86_64_FORK: &[c_long] = &[libc::SYS_fork];

/// Fail with an error instead of the operator's action: C libraries try these first and fall back
/// to other calls.
pub(super) const REFUSED: &[(c_long, i32)] = &[
    CLONE3,
    // The daemon opens files relative to a descriptor. Only musl's open() makes this call.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, libc::EACCES),
];

/// The calls that a process may make with some arguments only. If a call has several rows, any of
/// them permits it.
pub(super) fn conditional(process: Process) -> Vec<Conditional> {
    let int = Conditional::int;
    let mut rows = common::runtime();
    if process == Process::Reporter {
        rows.extend(common::descriptors());
        rows.extend([
            int(libc::SYS_fcntl, 1, libc::F_GET_SEALS),
            int(libc::SYS_prctl, 0, PR_GET_AUXV),
        ]);
        return rows;
    }
    if process == Process::Worker {
        rows.push(common::own_signals());
    }
    rows.extend(common::descriptors());
    rows.extend([
        common::thread(),
        // A working directory and umask per thread.
        int(libc::SYS_unshare, 0, libc::CLONE_FS),
        // Locks of files.
        int(libc::SYS_fcntl, 1, libc::F_OFD_GETLK),
        int(libc::SYS_fcntl, 1, libc::F_OFD_SETLK),
        int(libc::SYS_fcntl, 1, libc::F_OFD_SETLKW),
    ]);
    rows.extend([
        // The memory of requests in flight, which a frontend keeps.
        int(libc::SYS_fcntl, 1, libc::F_ADD_SEALS),
        int(libc::SYS_fcntl, 1, libc::F_GET_SEALS),
    ]);
    // Flags and projects of files, and queries about encryption.
    rows.extend(file_ioctl::ALL.map(|command| int(libc::SYS_ioctl, 1, command.cast_signed())));
    if process != Process::Worker {
        rows.extend([
            // Keepers and workers: processes with memory of their own.
            common::process(),
            // The size of a page, which the workers then know, for the memory of a guest's state.
            int(libc::SYS_prctl, 0, PR_GET_AUXV),
            int(libc::SYS_prctl, 0, libc::PR_SET_PDEATHSIG),
            int(libc::SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS),
        ]);
    }
    if process == Process::Acceptor {
        rows.push(int(libc::SYS_unshare, 0, libc::CLONE_NEWNS));
        // A keeper is the first process of a process namespace.
        rows.push(common::process_in_namespace());
        // A keeper enters the mount namespace of the keeper before it.
        rows.push(int(libc::SYS_setns, 1, libc::CLONE_NEWNS));
    }
    rows
}

/// Reads the process's auxiliary vector (`linux/prctl.h`). The C libraries' bindings lack it.
const PR_GET_AUXV: i32 = 0x4155_5856;
