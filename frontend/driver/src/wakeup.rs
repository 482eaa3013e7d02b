//! What a queue's leader sleeps on: the daemon's notifications, its hang-up, and an eventfd of the
//! driver's own.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::{Error, Result};

/// The data of an epoll event: which descriptor it is of.
const CALL: u64 = 0;
const OWN: u64 = 1;
const HANG_UP: u64 = 2;

/// The descriptors of one queue.
pub(super) struct Wakeup {
    call: EventFd,
    own: EventFd,
    epoll: Epoll,
    /// Kept open as long as the epoll instance has it.
    _hang_up: Arc<OwnedFd>,
}

impl std::fmt::Debug for Wakeup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wakeup").finish_non_exhaustive()
    }
}

/// What ended a sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WakeReason {
    /// A notification, [`Wakeup::wake`], or the time limit.
    Woken,
    /// The daemon has closed the connection.
    HungUp,
}

impl Wakeup {
    /// `hang_up` polls as `RDHUP` when the daemon has closed the connection.
    pub(super) fn new(hang_up: &Arc<OwnedFd>) -> Result<Self> {
        let failed = |source| Error::System {
            what: "make the descriptors that a queue waits on",
            source,
        };
        let call = new_eventfd().map_err(failed)?;
        let own = new_eventfd().map_err(failed)?;
        let epoll = Epoll::new().map_err(failed)?;
        let descriptors = [
            (call.as_raw_fd(), EventSet::IN, CALL),
            (own.as_raw_fd(), EventSet::IN, OWN),
            (hang_up.as_raw_fd(), EventSet::READ_HANG_UP, HANG_UP),
        ];
        for (descriptor, events, which) in descriptors {
            epoll
                .ctl(
                    ControlOperation::Add,
                    descriptor,
                    EpollEvent::new(events, which),
                )
                .map_err(failed)?;
        }
        Ok(Self {
            call,
            own,
            epoll,
            _hang_up: Arc::clone(hang_up),
        })
    }

    /// The eventfd by which the daemon notifies.
    pub(super) const fn call(&self) -> &EventFd {
        &self.call
    }

    /// Ends the present sleep, or the next.
    pub(super) fn wake(&self) {
        // A full counter wakes the sleeper as well.
        let _ = self.own.write(1);
    }

    /// Sleeps until something happens, at most `limit`. May wake early.
    pub(super) fn sleep(&self, limit: Duration) -> std::io::Result<WakeReason> {
        let mut events = [EpollEvent::default(); 3];
        // Rounded up: otherwise the last millisecond would be a busy loop.
        let milliseconds = i32::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let count = match self.epoll.wait(milliseconds, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let mut reason = WakeReason::Woken;
        for event in events.iter().take(count) {
            match event.data() {
                // Neither read blocks. If another thread was faster, the counter is zero already.
                CALL => drop(self.call.read()),
                OWN => drop(self.own.read()),
                _ => reason = WakeReason::HungUp,
            }
        }
        Ok(reason)
    }
}

/// An eventfd whose reads and writes do not block.
pub(super) fn new_eventfd() -> std::io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn each_reason_ends_a_sleep_once() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let wakeup = Wakeup::new(&Arc::new(ours.into())).unwrap();
        let long = Duration::from_secs(60);
        wakeup.wake();
        assert_eq!(wakeup.sleep(long).unwrap(), WakeReason::Woken);
        wakeup.call().write(1).unwrap();
        assert_eq!(wakeup.sleep(long).unwrap(), WakeReason::Woken);
        let started = Instant::now();
        wakeup.sleep(Duration::from_millis(20)).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(20));
        drop(theirs);
        assert_eq!(wakeup.sleep(long).unwrap(), WakeReason::HungUp);
    }
}
