//! Termination signals and the end of child processes, as a readable descriptor.
#![allow(
    unsafe_code,
    reason = "signal sets and signalfd have no safe wrapper in the crates used"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The signals that always end the daemon.
const TERMINATION: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// The signal that ends the daemon unless it is ignored, as under nohup(1).
const HANG_UP: libc::c_int = libc::SIGHUP;

/// The signal that tells of the end of a child process.
pub const CHILD: i32 = libc::SIGCHLD;

/// The termination signals and [`CHILD`], delivered through a signalfd.
///
/// After a `fork`, each process reads its own signals (signalfd(2)).
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals in the calling thread and in threads it starts later, and opens the
    /// signalfd. Must be called before any thread is started.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn block() -> io::Result<Self> {
        let set = signal_set();
        // SAFETY: `set` is an initialised signal set; the previous set is not requested.
        let code =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: `set` is an initialised signal set; -1 requests a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above has just created this descriptor; nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes one pending signal; `None` if none is pending.
    ///
    /// # Errors
    /// Those of read(2), except `EAGAIN` and `EINTR`.
    pub fn take(&self) -> io::Result<Option<i32>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: `info` is writable for `size` bytes.
        let read = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if read < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: all-zero bytes are a valid value of this plain structure, and the kernel writes
        // whole ones only.
        let info = unsafe { info.assume_init() };
        Ok(i32::try_from(info.ssi_signo).ok())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn signal_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is writable; the call initialises all of it.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    let hang_up = (!is_ignored(HANG_UP)).then_some(HANG_UP);
    for signal in TERMINATION.into_iter().chain(hang_up).chain([CHILD]) {
        // SAFETY: `set` was initialised above and the signal's number is valid.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: initialised by `sigemptyset`.
    unsafe { set.assume_init() }
}

/// Makes a write beyond the limit of file sizes (`RLIMIT_FSIZE`) fail with EFBIG, instead of ending
/// the process. Processes that it forks inherit this.
pub fn ignore_file_size_signal() {
    // SAFETY: an ignored signal runs no handler.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is set; `action` is writable.
    let code = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a valid value of this plain structure, and the call overwrites
    // either all of it or nothing.
    let action = unsafe { action.assume_init() };
    code == 0 && action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_signal_is_taken_once() {
        // A thread of its own, because the test runner's threads must keep their signal mask.
        std::thread::spawn(|| {
            let signals = Signals::block().unwrap();
            assert_eq!(signals.take().unwrap(), None);
            // SAFETY: has no conditions.
            let this_thread = unsafe { libc::pthread_self() };
            // SAFETY: the signal is sent to the calling thread, which blocks it.
            unsafe { libc::pthread_kill(this_thread, libc::SIGINT) };
            assert_eq!(signals.take().unwrap(), Some(libc::SIGINT));
            assert_eq!(signals.take().unwrap(), None);
        })
        .join()
        .unwrap();
    }
}
