//! The process: forking, namespaces, inherited descriptors, ignored signals.
#![allow(
    unsafe_code,
    reason = "fork, unshare, signal and descriptors given by number have no safe wrapper"
)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_service::signals;
use rustix::process::{Pid, Signal, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

/// The side of a fork.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old process, with the new one's id.
    Parent(Pid),
}

/// Forks the calling process, which must have a single thread: the copy would lack the others while
/// their locks stay held.
///
/// Looks at no path, since a confined process finds a guest's files there.
///
/// # Errors
/// Those of fork(2).
pub fn fork() -> io::Result<Forked> {
    // SAFETY: the process has a single thread by this function's contract, so no other thread holds
    // a lock and the copy may continue as any program.
    forked(unsafe { libc::fork() }.into())
}

/// The side of a fork that returned `pid`.
fn forked(pid: libc::c_long) -> io::Result<Forked> {
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok(pid.map_or(Forked::Child, Forked::Parent))
}

/// Starts a copy of the calling process that shares its descriptor table (`CLONE_FILES`). The
/// calling process must have a single thread.
///
/// Both processes now own the same descriptors, so one of them must close none: it ends by
/// [`exit`], without running destructors.
///
/// The C library does not learn of the new process, so the first thread of the copy must not send
/// itself signals and should leave the work to another thread.
///
/// # Errors
/// Those of clone(2).
pub fn clone_sharing_descriptors() -> io::Result<Forked> {
    let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
    // SAFETY: without CLONE_VM the copy has memory of its own, and with a null stack it goes on
    // with its copy of the caller's, as after fork. The process has a single thread by this
    // function's contract.
    forked(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })
}

/// How long children may take to begin closing descriptors.
const FREEING: Duration = Duration::from_millis(100);

/// How often it is looked whether it has.
const FREEING_INTERVAL: Duration = Duration::from_micros(50);

/// Has children of the calling process close descriptors, one each, and does not wait for them:
/// the close of a file may wait for the file's server, and that of a socket for its peer, or for
/// what is on its way in it. Adds the children to `children`. They are killed when the calling
/// process ends, which must have a single thread.
///
/// Returns once the numbers are free, which the kernel does first, so that no process that is
/// forked next has copies.
///
/// # Errors
/// Those of clone(2): the descriptors that are left stay open.
pub fn close_in_children(descriptors: Vec<OwnedFd>, children: &mut Vec<Pid>) -> io::Result<()> {
    let numbers = descriptors.into_iter().map(IntoRawFd::into_raw_fd);
    let numbers: Vec<RawFd> = numbers.collect();
    for number in &numbers {
        match clone_sharing_descriptors()? {
            Forked::Parent(child) => children.push(child),
            Forked::Child => {
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                if let Ok(number) = u32::try_from(*number) {
                    // Nothing owns it any more.
                    let _ = close_range(number, number);
                }
                exit(0)
            }
        }
    }
    let end = Instant::now() + FREEING;
    while numbers.iter().any(|number| is_open(*number)) && Instant::now() < end {
        thread::sleep(FREEING_INTERVAL);
    }
    Ok(())
}

/// As [`fork`], as a child of the calling process's parent.
///
/// The C library does not learn of the new process: see [`clone_sharing_descriptors`].
///
/// # Errors
/// Those of clone(2).
pub fn fork_sibling() -> io::Result<Forked> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: as in `clone_sharing_descriptors`; the copy has descriptors of its own.
    forked(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })
}

/// The side of [`fork_watched_sibling`].
#[derive(Debug)]
pub enum WatchedFork {
    /// The new process.
    Child,
    /// The old process, with the new one's id and its pidfd, which is readable once it has ended.
    Parent(Pid, OwnedFd),
}

/// As [`fork_sibling`], with a descriptor of the new process. With `has_namespace`, that is the
/// first one of a new process namespace, which takes CAP_SYS_ADMIN.
///
/// # Errors
/// Those of clone(2).
pub fn fork_watched_sibling(has_namespace: bool) -> io::Result<WatchedFork> {
    let namespace = if has_namespace { libc::CLONE_NEWPID } else { 0 };
    let flags = namespace | libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: RawFd = -1;
    // SAFETY: as in `fork_sibling`; the kernel stores the descriptor in `pidfd`.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            0,
            &raw mut pidfd,
            0,
            0,
        )
    };
    Ok(match forked(pid)? {
        Forked::Child => WatchedFork::Child,
        // SAFETY: the call has succeeded, so the descriptor is new.
        Forked::Parent(pid) => WatchedFork::Parent(pid, unsafe { OwnedFd::from_raw_fd(pidfd) }),
    })
}

/// Executes the program in `file` in place of this process. Returns only if that fails.
///
/// The process keeps its pending signals and which are blocked, and its descriptors that are not
/// close-on-exec.
#[must_use]
pub fn execute(file: BorrowedFd<'_>, arguments: &[CString], variables: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        let pointers = strings.iter().map(|string| string.as_ptr());
        pointers.chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, variables) = (pointers(arguments), pointers(variables));
    // SAFETY: the arrays end with a null pointer, and their strings live until the call returns.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            variables.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Moves a descriptor to the lowest free number from `lowest` on.
///
/// # Errors
/// Those of fcntl(2).
pub fn move_up(descriptor: OwnedFd, lowest: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(&descriptor, lowest)?)
}

/// Gives a descriptor another number, which must be free, and leaves it open for the process's
/// descendants to adopt.
///
/// # Errors
/// Those of dup3(2); `AlreadyExists` if the number is not free.
pub fn place(descriptor: OwnedFd, number: RawFd) -> io::Result<()> {
    if descriptor.as_raw_fd() == number {
        let _ = descriptor.into_raw_fd();
        return Ok(());
    }
    if is_open(number) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: the number is free, so that nothing in the program owns it.
    let placed = unsafe { libc::dup3(descriptor.as_raw_fd(), number, libc::O_CLOEXEC) };
    match placed {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Ends the process at once, without destructors and without the C library's exit handlers.
pub fn exit(status: u8) -> ! {
    // SAFETY: has no conditions.
    unsafe { libc::_exit(status.into()) }
}

/// Ends the process by SIGABRT, whatever it does with that signal, so that the kernel may write a
/// core file. Without destructors and exit handlers.
///
/// Unlike the C library's function, it may be called in the first thread of a process of which the
/// library does not know ([`clone_sharing_descriptors`]): musl would send the signal to the thread
/// that it takes the caller for, which is another process's.
pub fn abort() -> ! {
    // SAFETY: the default action of a signal has no conditions.
    unsafe { libc::signal(libc::SIGABRT, libc::SIG_DFL) };
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set is initialised.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGABRT) };
    // SAFETY: it reads the set, and stores no earlier one.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut()) };
    let process = rustix::process::getpid().as_raw_nonzero().get();
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    // SAFETY: the call takes no pointers.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGABRT) };
    // The first process of a process namespace ignores its own signals.
    std::process::abort()
}

/// Moves the calling thread (with [`UnshareFlags::NEWPID`] its future children) into new
/// namespaces. Ignores [`UnshareFlags::FILES`], so descriptor tables stay shared.
///
/// # Errors
/// Those of unshare(2).
pub fn unshare(namespaces: UnshareFlags) -> io::Result<()> {
    // SAFETY: without FILES, descriptor numbers keep their meaning in all threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(namespaces - UnshareFlags::FILES) }?)
}

/// Whether a descriptor has this number. If not, errno says that.
fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes no pointers and accepts any number.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Takes ownership of a descriptor that the process inherited.
///
/// The caller passes a number from the command line, before the process opens descriptors itself,
/// or one that the worker before has left, before anything else owns it.
///
/// # Errors
/// `EBADF` if the descriptor is not open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if !is_open(number) {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by this function's contract nothing in the program owns
    // it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A descriptor given by its number, which must stay open: a keeper whose worker has ended opens
/// and closes nothing of the guest's.
#[must_use]
pub fn borrow<'a>(number: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the number was read from the list of open descriptors, so that it is not -1, and by
    // this function's contract it stays open.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// A copy of a descriptor given by its number, whoever owns that.
///
/// # Errors
/// `EBADF` if it is not open; EMFILE.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers and accepts any number.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Closes all descriptors from `first` to `last`, as far as they are open.
///
/// The caller must know that nothing in the program owns one of them.
///
/// # Errors
/// Those of close_range(2).
pub fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: nothing in the program owns the descriptors, by this function's contract.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    // Before Linux 5.9. No process has more descriptors than `fs.nr_open` permitted there.
    for number in first..=last.min(1 << 20) {
        if let Ok(number) = RawFd::try_from(number) {
            // SAFETY: as above.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}

/// Signals whose default ends a process, and that must not end the daemon.
const IGNORED: [libc::c_int; 10] = [
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// Sets the signals on which the daemon depends, whatever it has inherited. Processes that it forks
/// inherit this.
///
/// - SIGXFSZ is ignored, so that a write beyond the limit of file sizes (`RLIMIT_FSIZE`) fails with
///   EFBIG instead of ending the process.
/// - SIGUSR1, SIGUSR2, real-time signals and others that mean nothing here are ignored. By default
///   they would end the process. Supervisor and acceptor take SIGUSR1 from a descriptor, and a
///   worker installs its own handler of it later.
/// - SIGHUP has its default, because it asks for a reload also where nohup(1) started the daemon.
/// - SIGCHLD has its default, because the kernel reports no ended processes while it is ignored.
/// - SIGUSR1, which wakes blocked threads ([`super::interrupt`]), is not blocked.
///
/// # Errors
/// Those of sigprocmask(2) and rt_sigaction(2).
pub fn set_signal_dispositions() -> io::Result<()> {
    for signal in IGNORED {
        // SAFETY: an ignored signal runs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    for signal in [libc::SIGHUP, libc::SIGCHLD] {
        // SAFETY: as above, for a signal with its default.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    signals::ignore_real_time()?;
    unblock_wake_signal()
}

/// Unblocks SIGUSR1, which wakes blocked threads ([`super::interrupt`]), in the calling thread and
/// in those that it starts later.
///
/// # Errors
/// Those of sigprocmask(2).
pub fn unblock_wake_signal() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is writable; the call initialises all of it.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: `set` was initialised above, and the signal's number is valid.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR1) };
    // SAFETY: `set` was initialised above; the previous set is not requested.
    let code =
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut()) };
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_that_waits_does_not_hold_its_caller_up() {
        use std::io::Write;
        use std::net::{TcpListener, TcpStream};

        use rustix::process::WaitOptions;

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        // More than the peer reads, and the close waits for that.
        while stream.write(&[0; 1 << 16]).is_ok() {}
        stream.set_nonblocking(false).unwrap();
        let limit = Duration::from_secs(60);
        rustix::net::sockopt::set_socket_linger(&stream, Some(limit)).unwrap();
        let moved = move_up(stream.into(), 700).unwrap();
        let number = moved.as_raw_fd();
        let begun = Instant::now();
        // Another one is not held up by it.
        let other = move_up(peer.try_clone().unwrap().into(), 700).unwrap();
        let other_number = other.as_raw_fd();
        let mut children = Vec::new();
        close_in_children(vec![moved, other], &mut children).unwrap();
        let child = children[0];
        assert!(begun.elapsed() < limit / 2, "it waits");
        while is_open(number) || is_open(other_number) {
            assert!(begun.elapsed() < limit / 2, "it is open");
            thread::sleep(Duration::from_millis(1));
        }
        let waited = rustix::process::waitpid(Some(child), WaitOptions::NOHANG);
        assert!(matches!(waited, Ok(None)), "it does not wait: {waited:?}");
        drop(peer);
        for child in children {
            rustix::process::waitpid(Some(child), WaitOptions::empty()).unwrap();
        }
    }

    #[test]
    fn adopt_of_a_closed_number_is_refused() {
        let error = adopt(1_000_000_000).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
