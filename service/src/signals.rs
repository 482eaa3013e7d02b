//! Signals that ask a program for something, as a readable descriptor.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SignalRequest {
    /// To end: SIGTERM, SIGINT, and SIGHUP unless the parent had it ignored.
    Terminate,
    /// To log the status: SIGUSR1.
    Report,
}

/// Signals that are read from a descriptor instead of ending the process.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals in the calling thread and in those that it starts later, and opens the
    /// descriptor at which they arrive. Must be called before any thread is started.
    ///
    /// # Errors
    /// `signalfd(2)`'s.
    pub fn block() -> io::Result<Self> {
        let mut set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1]);
        if !is_ignored(Signal::SIGHUP) {
            set.add(Signal::SIGHUP);
        }
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags)?))
    }

    /// Takes one signal that has arrived, or `None`.
    ///
    /// # Errors
    /// `read(2)`'s.
    pub fn take(&self) -> io::Result<Option<SignalRequest>> {
        let report = Signal::SIGUSR1 as u32;
        Ok(self.0.read_signal()?.map(|signal| match signal.ssi_signo {
            number if number == report => SignalRequest::Report,
            _ => SignalRequest::Terminate,
        }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether the parent process had `signal` ignored, as nohup(1) does. Once blocked, an ignored signal
/// would arrive at the descriptor.
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
        // A thread of its own, so that the mask of the test runner's threads stays as it is.
        std::thread::spawn(|| {
            let signals = Signals::block().unwrap();
            assert_eq!(signals.take().unwrap(), None);
            for (signal, told) in [
                (Signal::SIGUSR1, SignalRequest::Report),
                (Signal::SIGINT, SignalRequest::Terminate),
                (Signal::SIGTERM, SignalRequest::Terminate),
            ] {
                raise(signal).unwrap();
                assert_eq!(signals.take().unwrap(), Some(told), "{signal}");
                assert_eq!(signals.take().unwrap(), None);
            }
        })
        .join()
        .unwrap();
    }
}
