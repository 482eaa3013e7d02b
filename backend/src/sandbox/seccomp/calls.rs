//! The system calls a confined daemon may make, as data.
//!
//! Both C libraries and both architectures are covered by one list: a name in it says that the
//! daemon needs the call, whichever variant of it the C library takes. What an architecture does
//! not have is left out for it.

use libc::{c_long, c_ulong};

// Newer than the C libraries' headers; numbers from here on are the same on all architectures
// (include/uapi/asm-generic/unistd.h).
const SYS_FCHMODAT2: c_long = 452;
const SYS_SETXATTRAT: c_long = 463;
const SYS_GETXATTRAT: c_long = 464;
const SYS_LISTXATTRAT: c_long = 465;
const SYS_REMOVEXATTRAT: c_long = 466;

/// Allowed with any arguments.
pub(super) const ALLOWED: &[&[c_long]] = &[
    FILES,
    DATA,
    ATTRIBUTES,
    CREDENTIALS,
    THREADS,
    MEMORY,
    EVENTS,
    SOCKETS,
    TIME,
    SIGNALS,
    #[cfg(target_arch = "x86_64")]
    X86_64,
];

/// Names and descriptors below the share.
const FILES: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_name_to_handle_at,
    // Without CAP_DAC_READ_SEARCH the kernel refuses it; with it, it is how inodes are found again.
    libc::SYS_open_by_handle_at,
    libc::SYS_readlinkat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mknodat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    // Extended attributes of what cannot be opened are reached through the working directory.
    libc::SYS_fchdir,
    libc::SYS_getdents64,
    libc::SYS_syncfs,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
];

/// What is in files.
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
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_copy_file_range,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
];

/// What is known about files.
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

/// A thread acts as its guest's caller.
const CREDENTIALS: &[c_long] = &[
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    // CAP_FSETID is put down and taken up again to have set-user-ID bits cleared.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_umask,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
];

/// Threads come and go with guests.
const THREADS: &[c_long] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_membarrier,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_getrusage,
    // glibc asks for a new thread's CPUs when it looks up the thread's stack.
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_getparam,
];

/// Memory, except for what could make it executable.
const MEMORY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
];

/// Waiting.
const EVENTS: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
];

/// Guests' connections. Which sockets can be made is limited where they are made.
const SOCKETS: &[c_long] = &[
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

/// Clocks, for where the vDSO does not answer.
const TIME: &[c_long] = &[
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    // Hash tables seed themselves.
    libc::SYS_getrandom,
];

/// Signals of and to the daemon's own threads.
const SIGNALS: &[c_long] = &[
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    // musl raises signals, such as abort's, with it.
    libc::SYS_tkill,
];

/// Older forms that only x86 has and that C libraries still use there.
#[cfg(target_arch = "x86_64")]
const X86_64: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    // musl's pipe() and dup2().
    libc::SYS_pipe,
    libc::SYS_dup2,
    // The fallback of time() in static programs.
    libc::SYS_time,
];

/// Answered with an error instead of the operator's action: C libraries try these first and know
/// what to do without.
pub(super) const REFUSED: &[(c_long, i32)] = &[
    // Its flags are in memory, where a filter cannot see them; clone's are not.
    (libc::SYS_clone3, libc::ENOSYS),
    // Everything is opened relative to a descriptor. musl's open() alone takes this one.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, libc::EACCES),
];

/// Allowed where one argument is right.
pub(super) struct Conditional {
    /// The system call.
    pub(super) call: c_long,
    /// The argument's position, from 0.
    pub(super) argument: u8,
    /// How much of the argument the kernel looks at.
    pub(super) width: Width,
    /// The bits that count.
    pub(super) mask: u64,
    /// What they must be.
    pub(super) value: u64,
}

/// The size of an argument.
#[derive(Clone, Copy)]
pub(super) enum Width {
    /// `int`: the upper half of the register is noise.
    Int,
    /// `long` or a pointer.
    Long,
}

const ALL_BITS: u64 = u64::MAX;

/// Allowed where an argument is right. A call with several rows is allowed by any of them.
pub(super) fn conditional() -> Vec<Conditional> {
    let int = |call, argument, value: i32| Conditional {
        call,
        argument,
        width: Width::Int,
        mask: ALL_BITS,
        value: u64::from(value.cast_unsigned()),
    };
    let long = |call, argument, mask: u64, value: u64| Conditional {
        call,
        argument,
        width: Width::Long,
        mask,
        value,
    };
    let no_exec = |call| Conditional {
        call,
        argument: 2,
        width: Width::Int,
        mask: u64::from(libc::PROT_EXEC.cast_unsigned()),
        value: 0,
    };
    vec![
        // Sockets reach other processes of this host at most.
        int(libc::SYS_socket, 0, libc::AF_UNIX),
        int(libc::SYS_socketpair, 0, libc::AF_UNIX),
        // Only to whom the socket is connected: syslog, a frontend.
        long(libc::SYS_sendto, 4, ALL_BITS, 0),
        // Threads, neither processes nor namespaces.
        long(libc::SYS_clone, 0, THREAD | NEW_NAMESPACES, THREAD),
        // A working directory and umask of a thread's own.
        int(libc::SYS_unshare, 0, libc::CLONE_FS),
        // Signals within the process.
        int(
            libc::SYS_tgkill,
            0,
            rustix::process::getpid().as_raw_nonzero().get(),
        ),
        // No memory becomes code.
        no_exec(libc::SYS_mmap),
        no_exec(libc::SYS_mprotect),
        // Names of threads and of memory areas.
        int(libc::SYS_prctl, 0, libc::PR_SET_NAME),
        int(libc::SYS_prctl, 0, libc::PR_SET_VMA),
        // Limits are read, not set.
        long(libc::SYS_prlimit64, 2, ALL_BITS, 0),
        // The standard library's non-blocking sockets and close-on-exec; what devices and file
        // systems take by ioctl stays out.
        long(libc::SYS_ioctl, 1, LOWER_HALF, FIONBIO),
        long(libc::SYS_ioctl, 1, LOWER_HALF, FIOCLEX),
    ]
}

// As the kernel numbers them (asm-generic/ioctls.h); the C libraries give them different types.
const FIONBIO: u64 = 0x5421;
const FIOCLEX: u64 = 0x5451;

/// `ioctl` requests are 32 bits wide in the kernel, whatever type the C library gives them.
const LOWER_HALF: u64 = 0xffff_ffff;

const THREAD: u64 = flags(libc::CLONE_THREAD);

const NEW_NAMESPACES: u64 = flags(
    libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET,
);

const fn flags(bits: i32) -> c_ulong {
    // Widened without its sign, as a register carries it; `From` is not const.
    bits.cast_unsigned() as c_ulong
}
