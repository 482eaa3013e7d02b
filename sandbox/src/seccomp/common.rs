//! The system calls that C libraries and the standard library make on behalf of every program with
//! threads, as data.
//!
//! The groups cover both C libraries (glibc, musl) and all architectures: they have every variant
//! of a call that one of the libraries uses, except those that the architecture does not have.

use libc::c_long;

use super::{CallList, Conditional, Width};

/// What a program needs that serves the clients of Unix sockets with threads: all groups of this
/// module except [`WAITING`], and [`IO`] and [`SOCKETS`]. It starts no process, opens no file and
/// maps no executable memory.
#[must_use]
pub fn server() -> CallList {
    let mut conditional = runtime();
    conditional.extend([own_signals(), thread()]);
    conditional.extend(descriptors());
    CallList {
        allowed: vec![
            IO,
            SOCKETS,
            ENDING,
            THREADS,
            MEMORY,
            EVENTS,
            TIME,
            SIGNALS,
            #[cfg(target_arch = "x86_64")]
            X86_64,
        ],
        conditional,
        refused: vec![CLONE3],
    }
}

/// Reading and writing open descriptors, the program's user, and the removal of its own sockets.
pub const IO: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_lseek,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_fstat,
    // Not on i686.
    #[cfg(target_pointer_width = "64")]
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    // musl's stat() and unlink().
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Connections. `socket` and `socketpair` are in [`descriptors`].
pub const SOCKETS: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Opening files by name.
pub const OPENING: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    // musl's open() and access().
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

/// Fail with an error in a program that opens no file: C libraries look for files of their own and
/// do without.
pub const NO_FILES: &[(c_long, i32)] = &[
    (libc::SYS_openat, libc::EACCES),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, libc::EACCES),
];

/// The end of a thread or process, and locks.
pub const ENDING: &[c_long] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
];

/// Waiting for a process that the caller started.
pub const WAITING: &[c_long] = &[libc::SYS_wait4, libc::SYS_waitid];

/// Threads. `clone` is in [`thread`].
pub const THREADS: &[c_long] = &[
    // The libc crate lacks it for i686.
    #[cfg(target_pointer_width = "64")]
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_getrusage,
    // glibc asks for a new thread's CPUs when it looks up the thread's stack.
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_getparam,
];

/// Memory. `mmap` and `mprotect` are in [`runtime`].
pub const MEMORY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
];

/// Waiting for events.
pub const EVENTS: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
];

/// Clocks, for hosts whose vDSO does not provide them.
pub const TIME: &[c_long] = &[
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    // The standard library seeds its hash tables with it.
    libc::SYS_getrandom,
];

/// Signals between the process's own threads.
pub const SIGNALS: &[c_long] = &[
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
];

/// Older calls that only x86 has and that C libraries still make there.
#[cfg(target_arch = "x86_64")]
pub const X86_64: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    // musl's pipe() and dup2().
    libc::SYS_pipe,
    libc::SYS_dup2,
    // The fallback of time() in static programs.
    libc::SYS_time,
];

/// Fails with an error: C libraries try this call first and fall back to clone. A filter cannot
/// check clone3's flags, which lie in memory; it can check clone's.
pub const CLONE3: (c_long, i32) = (libc::SYS_clone3, libc::ENOSYS);

/// What every process does with some arguments only.
#[must_use]
pub fn runtime() -> Vec<Conditional> {
    let no_exec = |call| Conditional {
        call,
        argument: 2,
        width: Width::Int,
        mask: u64::from(libc::PROT_EXEC.cast_unsigned()),
        value: 0,
    };
    vec![
        // No executable memory.
        no_exec(libc::SYS_mmap),
        no_exec(libc::SYS_mprotect),
        // Without an address, so only to the connected peer: syslog, a frontend.
        Conditional::long(libc::SYS_sendto, 4, u64::MAX, 0),
        // Names of threads and of memory areas.
        Conditional::int(libc::SYS_prctl, 0, libc::PR_SET_NAME),
        Conditional::int(libc::SYS_prctl, 0, libc::PR_SET_VMA),
        #[cfg(target_env = "musl")]
        // musl's abort(). A thread's number says nothing about its process, so the signal must do.
        Conditional::int(libc::SYS_tkill, 1, libc::SIGABRT),
    ]
}

/// Signals to threads of the calling process.
#[must_use]
pub fn own_signals() -> Conditional {
    let this_process = rustix::process::getpid().as_raw_nonzero().get();
    Conditional::int(libc::SYS_tgkill, 0, this_process)
}

/// Starting threads, neither processes nor namespaces.
#[must_use]
pub fn thread() -> Conditional {
    Conditional::long(libc::SYS_clone, 0, THREAD | NEW_NAMESPACES, THREAD)
}

/// Starting processes with memory of their own.
#[must_use]
pub fn process() -> Conditional {
    Conditional::long(
        libc::SYS_clone,
        0,
        THREAD | MEMORY_SHARING | NEW_NAMESPACES,
        0,
    )
}

/// Starting processes with memory and a process namespace of their own.
#[must_use]
pub fn process_in_namespace() -> Conditional {
    Conditional::long(
        libc::SYS_clone,
        0,
        THREAD | MEMORY_SHARING | NEW_NAMESPACES,
        flags(libc::CLONE_NEWPID),
    )
}

/// Starting processes, also such that share memory until they execute a program, as posix_spawn
/// does.
#[must_use]
pub fn program() -> Conditional {
    Conditional::long(libc::SYS_clone, 0, THREAD | NEW_NAMESPACES, 0)
}

/// What a process calls to confine itself once more, as a process that it starts does.
pub const CONFINING: &[c_long] = &[
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_capget,
    libc::SYS_capset,
];

/// As [`CONFINING`], with some arguments.
#[must_use]
pub fn confining() -> [Conditional; 4] {
    let prctl = |operation| Conditional::int(libc::SYS_prctl, 0, operation);
    [
        prctl(libc::PR_SET_NO_NEW_PRIVS),
        prctl(libc::PR_CAPBSET_READ),
        prctl(libc::PR_CAPBSET_DROP),
        prctl(libc::PR_CAP_AMBIENT),
    ]
}

/// Unix sockets, which cannot leave this host; the flags and copies of descriptors; the process's
/// limits.
#[must_use]
pub fn descriptors() -> [Conditional; 10] {
    let int = Conditional::int;
    [
        int(libc::SYS_socket, 0, libc::AF_UNIX),
        int(libc::SYS_socketpair, 0, libc::AF_UNIX),
        // F_SETOWN and F_SETSIG would send any signal to any process of the user.
        int(libc::SYS_fcntl, 1, libc::F_GETFD),
        int(libc::SYS_fcntl, 1, libc::F_SETFD),
        int(libc::SYS_fcntl, 1, libc::F_GETFL),
        int(libc::SYS_fcntl, 1, libc::F_SETFL),
        int(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC),
        // The standard library sets sockets non-blocking and descriptors close-on-exec by ioctl. No
        // ioctl of a device or file system is permitted.
        ioctl(FIONBIO),
        ioctl(FIOCLEX),
        // Reading limits, without a new limit.
        Conditional::long(libc::SYS_prlimit64, 2, u64::MAX, 0),
    ]
}

/// An `ioctl` by its request.
#[must_use]
pub fn ioctl(request: u32) -> Conditional {
    Conditional::long(libc::SYS_ioctl, 1, LOWER_HALF, u64::from(request))
}

/// All `ioctl`s of one type, a byte (asm-generic/ioctl.h).
#[must_use]
pub fn ioctls_of_type(type_byte: u32) -> Conditional {
    const TYPE_SHIFT: u32 = 8;
    let mask = 0xff << TYPE_SHIFT;
    Conditional::long(libc::SYS_ioctl, 1, mask, u64::from(type_byte) << TYPE_SHIFT)
}

// Numbers of asm-generic/ioctls.h; the libc crate's constants differ in type between C libraries.
const FIONBIO: u32 = 0x5421;
const FIOCLEX: u32 = 0x5451;

/// Mask for the request of `ioctl`, of which the kernel uses 32 bits.
const LOWER_HALF: u64 = 0xffff_ffff;

const THREAD: u64 = flags(libc::CLONE_THREAD);

const MEMORY_SHARING: u64 = flags(libc::CLONE_VM);

const NEW_NAMESPACES: u64 = flags(
    libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET,
);

const fn flags(bits: i32) -> u64 {
    // Zero-extended, as in a register. A cast, because `From` is not const.
    bits.cast_unsigned() as u64
}
