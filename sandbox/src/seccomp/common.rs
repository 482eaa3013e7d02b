//! The system calls that C libraries and the standard library make on behalf of every program with
//! threads, as data.
//!
//! The groups cover both C libraries (glibc, musl) and all architectures: they have every variant
//! of a call that one of the libraries uses, except those that the architecture does not have.

use libc::c_long;

use super::{Conditional, Width};

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

/// The standard library sets sockets non-blocking and descriptors close-on-exec by ioctl. No ioctl
/// of a device or file system is permitted.
#[must_use]
pub fn descriptor_flags() -> [Conditional; 2] {
    [ioctl(FIONBIO), ioctl(FIOCLEX)]
}

/// An `ioctl` by its request.
#[must_use]
pub fn ioctl(request: u32) -> Conditional {
    Conditional::long(libc::SYS_ioctl, 1, LOWER_HALF, u64::from(request))
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
