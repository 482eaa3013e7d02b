//! Signals: which end a program, which ask for its status, and those of a program as a readable
//! descriptor.
#![allow(unsafe_code)] // rt_sigaction(2), whose wrappers refuse the C library's own signals

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::{fs, io, ptr, thread};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SigSet;
pub use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals by which a person or a service manager ends a program in order. Two others end it at
/// once: SIGQUIT, with a core dump, and SIGKILL.
pub const TERMINATION: [Signal; 2] = [Signal::SIGTERM, Signal::SIGINT];

/// The signals at which a daemon writes its status to the log, except gangplankd, which reloads at
/// SIGHUP.
pub const STATUS: [Signal; 2] = [Signal::SIGUSR1, Signal::SIGHUP];

/// Signals whose default ends a process and that mean nothing to a program that does not ask for
/// them. Somebody sends SIGUSR1 to every daemon that may have a status. At a limit of file sizes or
/// processor time, a write fails with EFBIG, or nothing happens.
const HARMLESS: [Signal; 10] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
];

/// The real-time signals by the kernel's numbers. A C library keeps the first ones for itself, each
/// library another count of them: what one calls SIGRTMIN is another's own.
const REAL_TIME: RangeInclusive<libc::c_int> = 32..=64;

/// Bytes of the kernel's set of signals.
const SIGNAL_SET_BYTES: usize = 8;

/// The kernel's `struct sigaction`: the handler, then flags, a restorer and a set of signals, which
/// take less than this. x86, x86-64 and aarch64 begin with the handler.
type KernelAction = [usize; 8];

/// Blocks the signals that mean nothing, in the calling thread and in those that it starts later,
/// so that they do not end the process. Must be called before any thread is started.
///
/// # Errors
/// Those of `pthread_sigmask(3)` and `rt_sigaction(2)`.
pub fn block_harmless() -> io::Result<()> {
    SigSet::from_iter(HARMLESS).thread_block()?;
    ignore_real_time()
}

/// Ignores the real-time signals, which would end the process by default. One that the C library
/// has a handler for, or sets one later, keeps that.
///
/// # Errors
/// Those of `rt_sigaction(2)`.
pub fn ignore_real_time() -> io::Result<()> {
    for signal in REAL_TIME {
        let mut action: KernelAction = [0; 8];
        change_action(signal, ptr::null(), &raw mut action)?;
        if action[0] == libc::SIG_DFL {
            action = [0; 8];
            action[0] = libc::SIG_IGN;
            change_action(signal, &raw const action, ptr::null_mut())?;
        }
    }
    Ok(())
}

fn change_action(
    signal: libc::c_int,
    new: *const KernelAction,
    old: *mut KernelAction,
) -> io::Result<()> {
    // SAFETY: both are null or refer to live values that are at least as long as the kernel's
    // structure, and the callers set no handler.
    let done = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, SIGNAL_SET_BYTES) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has `report` run, on a thread of its own, at each signal of [`STATUS`]. Must be called before
/// any other thread is started.
///
/// # Errors
/// Those of `pthread_sigmask(3)`, or the thread cannot be started.
pub fn at_status_signals(report: impl Fn() + Send + 'static) -> io::Result<()> {
    let signals = SigSet::from_iter(STATUS);
    signals.thread_block()?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            while signals.wait().is_ok() {
                report();
            }
        })?;
    Ok(())
}

/// Signals that are read from a descriptor and have no other effect on the process.
///
/// After a `fork`, each process reads its own signals (signalfd(2)).
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks `signals` in the calling thread and in those that it starts later, and opens the
    /// descriptor at which they arrive. Must be called before any thread is started.
    ///
    /// SIGHUP is not blocked if the process ignores it, as under nohup(1): once blocked, an ignored
    /// signal would arrive at the descriptor.
    ///
    /// # Errors
    /// `signalfd(2)`'s.
    pub fn block(signals: impl IntoIterator<Item = Signal>) -> io::Result<Self> {
        let mut set = SigSet::from_iter(signals);
        if set.contains(Signal::SIGHUP) && is_ignored(Signal::SIGHUP) {
            set.remove(Signal::SIGHUP);
        }
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags)?))
    }

    /// Takes one signal that has arrived, or `None`. Its number is `signal as i32`.
    ///
    /// # Errors
    /// `read(2)`'s, except `EAGAIN` and `EINTR`.
    pub fn take(&self) -> io::Result<Option<Signal>> {
        let read = match self.0.read_signal() {
            Err(Errno::EINTR) => None,
            read => read?,
        };
        // Only signals that `block` was given arrive, so the conversion does not fail.
        let number = read.and_then(|info| i32::try_from(info.ssi_signo).ok());
        Ok(number.and_then(|number| Signal::try_from(number).ok()))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set & 1 << (signal as u32 - 1) != 0)
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn each_signal_is_taken_once_and_means_what_it_does() {
        // A thread of its own: the test runner's threads must keep their signal mask.
        std::thread::spawn(|| {
            let wanted = TERMINATION.into_iter().chain([Signal::SIGUSR1]);
            let signals = Signals::block(wanted).unwrap();
            assert_eq!(signals.take().unwrap(), None);
            for signal in [Signal::SIGUSR1, Signal::SIGINT, Signal::SIGTERM] {
                raise(signal).unwrap();
                assert_eq!(signals.take().unwrap(), Some(signal), "{signal}");
                assert_eq!(signals.take().unwrap(), None);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn signals_that_mean_nothing_end_nothing() {
        std::thread::spawn(|| {
            block_harmless().unwrap();
            for signal in HARMLESS {
                raise(signal).unwrap();
            }
            let own = nix::unistd::getpid().as_raw();
            for number in REAL_TIME {
                // SAFETY: takes no pointers.
                unsafe { libc::kill(own, number) };
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_real_time_signal_keeps_its_handler() {
        use nix::sys::signal::{SaFlags, SigAction, SigHandler};

        extern "C" fn handle(_: libc::c_int) {}
        // The last one, which no other test looks at; nix knows no real-time signals.
        let last = *REAL_TIME.end();
        let handler = SigAction::new(
            SigHandler::Handler(handle),
            SaFlags::empty(),
            SigSet::empty(),
        );
        let raw = libc::sigaction::from(handler);
        // SAFETY: the handler does nothing.
        unsafe { libc::sigaction(last, &raw const raw, ptr::null_mut()) };
        ignore_real_time().unwrap();
        let mut action: KernelAction = [0; 8];
        change_action(last, ptr::null(), &raw mut action).unwrap();
        assert_eq!(action[0], handle as *const () as usize);
        change_action(last - 1, ptr::null(), &raw mut action).unwrap();
        assert_eq!(action[0], libc::SIG_IGN);
    }

    #[test]
    fn signal_that_was_not_chosen_is_not_blocked() {
        std::thread::spawn(|| {
            let _signals = Signals::block([Signal::SIGUSR2]).unwrap();
            let blocked = SigSet::thread_get_mask().unwrap();
            assert!(blocked.contains(Signal::SIGUSR2));
            assert!(!blocked.contains(Signal::SIGTERM));
        })
        .join()
        .unwrap();
    }
}
