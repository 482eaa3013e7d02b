//! Signals as a readable descriptor.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
pub use nix::sys::signal::Signal;
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals by which a person or a service manager ends a program.
pub const TERMINATION: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Signals whose default ends a process and that mean nothing to a program that does not ask for
/// them. Somebody sends SIGUSR1 to every daemon that may have a status.
const HARMLESS: [Signal; 8] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
];

/// Blocks the signals that mean nothing, in the calling thread and in those that it starts later,
/// so that they do not end the process. Must be called before any thread is started.
///
/// # Errors
/// `pthread_sigmask(3)`'s.
pub fn block_harmless() -> io::Result<()> {
    Ok(SigSet::from_iter(HARMLESS).thread_block()?)
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
        })
        .join()
        .unwrap();
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
