//! A ring of a guest with limits: while the guest is over its budget, the ring's requests stay in
//! the ring, and a timer wakes the ring's thread.
//!
//! So nothing is in flight that a stopped ring, the end of the connection or the worker's death
//! would have to wait for, and no thread waits. Requests that cost nothing (INIT, FORGET and the
//! like) are taken all the same once they are the ring's next.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::throttle::{Cost, Throttle};

/// The guest's limits as one ring's thread uses them.
#[derive(Clone, Debug)]
pub(super) struct RingThrottle {
    throttle: Arc<Throttle>,
    timer: Arc<OwnedFd>,
}

impl RingThrottle {
    /// # Errors
    /// The process is out of descriptors.
    pub(super) fn new(throttle: &Arc<Throttle>) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self {
            throttle: Arc::clone(throttle),
            timer: Arc::new(timer),
        })
    }

    /// Readable when the ring's thread is to look at its ring again.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// How long the ring's requests have to wait; `None` if the next one may start now.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.throttle.wait()
    }

    /// Has the timer wake the thread after `wait`.
    pub(super) fn sleep(&self, wait: Duration) {
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(wait).unwrap_or(LONGEST),
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value) {
            // The kernel refuses values that are no times alone.
            log::error!("cannot set the timer of a guest's limits: {error}");
        }
    }

    /// The timer has woken the thread.
    pub(super) fn wake(&self) {
        // AGAIN: it was set anew meanwhile.
        let _ = rustix::io::read(&self.timer, &mut [0; size_of::<u64>()]);
    }

    /// Takes the cost of a request that starts now.
    pub(super) fn charge(&self, cost: Cost) -> Charge {
        self.throttle.charge(cost);
        Charge {
            throttle: Arc::clone(&self.throttle),
            cost,
        }
    }
}

/// For waits that no `timespec` has room for.
const LONGEST: Timespec = Timespec {
    tv_sec: 365 * 24 * 3600,
    tv_nsec: 0,
};

/// What a request was charged.
#[derive(Debug)]
pub(super) struct Charge {
    throttle: Arc<Throttle>,
    cost: Cost,
}

impl Charge {
    /// The cost that was taken.
    pub(super) const fn cost(&self) -> Cost {
        self.cost
    }

    /// The request has a reply of `reply_len` bytes.
    pub(super) fn settle(self, reply_len: u32) {
        self.throttle.refund(self.cost, reply_len);
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::device::options::{Limits, Rate};

    fn is_readable(timer: BorrowedFd<'_>, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).unwrap();
        let mut ready = [PollFd::from_borrowed_fd(timer, PollFlags::IN)];
        poll(&mut ready, Some(&limit)).unwrap() == 1
    }

    #[test]
    fn the_timer_wakes_once() {
        let limits = Limits {
            operations: Some(Rate {
                per_second: 1,
                burst: 1,
            }),
            bytes: None,
        };
        let throttle = Arc::new(Throttle::new(&limits, true).unwrap());
        let ring = RingThrottle::new(&throttle).unwrap();
        assert!(!is_readable(ring.timer(), Duration::ZERO));
        ring.sleep(Duration::from_millis(1));
        assert!(is_readable(ring.timer(), Duration::from_secs(20)));
        ring.wake();
        assert!(!is_readable(ring.timer(), Duration::ZERO));
        ring.sleep(Duration::MAX);
        assert!(!is_readable(ring.timer(), Duration::ZERO));
    }
}
