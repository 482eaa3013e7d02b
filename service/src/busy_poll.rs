//! Decides whether a thread polls a ring before it sleeps, from how soon requests or replies came
//! before.
//!
//! Sleeping and waking take longer than most requests: some microseconds where both sides share a
//! CPU, tens of microseconds where an idle CPU has to wake up. A thread polls, with notifications
//! off, when the other side nearly always has something soon: the next request, or the reply. The
//! other side then saves its notification as well. The thread yields its CPU on every iteration,
//! and stops polling for a while after another thread took the CPU. An idle guest thus costs
//! nothing, and a busy host loses no CPU time.

use std::time::Duration;

/// Reads of the ring's index between two yields of the CPU.
const SPINS_PER_YIELD: u32 = 16;

/// Probability 1 in 16.16 fixed point.
const ONE: u32 = 1 << 16;

/// A thread polls when what it waits for comes within the limit with at least this probability.
const MIN_PROBABILITY: u32 = ONE / 4 * 3;

/// Each sample moves the estimate 1/8 of the way (exponential moving average).
const SMOOTHING: u32 = 8;

/// Another thread that runs this long during a yield competes for the CPU.
const MIN_PREEMPTION: Duration = Duration::from_micros(200);

/// Waits in which the thread sleeps after it first lost its CPU while polling.
///
/// What arrives while the CPU is lost waits for a time slice of the host's scheduler,
/// some milliseconds.
const MIN_BACKOFF: u32 = 64;

/// Most waits in which the thread sleeps; each further loss doubles the number up to this.
const MAX_BACKOFF: u32 = 4096;

/// When a thread polls, and its estimate of how soon what it waits for comes.
#[derive(Debug)]
pub struct BusyPoll {
    /// Longest time to poll (`--busy-poll`).
    limit: Duration,
    /// Probability that it comes within the limit, in parts of [`ONE`].
    probability: u32,
    /// Waits in which the thread still sleeps, whatever the probability.
    backoff: u32,
    /// Length of the next back-off, in waits.
    next_backoff: u32,
    /// The thread polled in this wait until the limit, then slept.
    missed: bool,
}

impl BusyPoll {
    /// Polls for at most `limit`, and never if that is zero. The probability starts at 0.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self {
            limit,
            probability: 0,
            backoff: 0,
            next_backoff: MIN_BACKOFF,
            missed: false,
        }
    }

    /// Whether [`Self::poll`] polls.
    #[must_use]
    pub const fn is_likely(&self) -> bool {
        self.backoff == 0 && self.probability >= MIN_PROBABILITY
    }

    /// Polls with `has_come` if that is likely to succeed, and returns whether it did.
    ///
    /// `idle` returns the time since the wait began.
    pub fn poll(
        &mut self,
        idle: impl Fn() -> Duration,
        mut has_come: impl FnMut() -> bool,
    ) -> bool {
        if !self.is_likely() {
            return false;
        }
        // The thread may have waited for something else before.
        let mut yielded = idle();
        loop {
            // Yield first: the other side may be waiting for this CPU.
            std::thread::yield_now();
            let found = (0..SPINS_PER_YIELD).any(|_| {
                std::hint::spin_loop();
                has_come()
            });
            let now = idle();
            if found || now >= self.limit {
                self.update(now);
                self.missed = !found;
                if now.saturating_sub(yielded) >= MIN_PREEMPTION {
                    self.back_off();
                } else if found {
                    self.next_backoff = (self.next_backoff - 1).max(MIN_BACKOFF);
                }
                return found;
            }
            yielded = now;
        }
    }

    /// Records that the thread slept until it came, `after` the wait began.
    pub fn record_sleep(&mut self, after: Duration) {
        self.backoff = self.backoff.saturating_sub(1);
        if !std::mem::take(&mut self.missed) {
            self.update(after);
        }
    }

    fn update(&mut self, after: Duration) {
        if after < self.limit {
            self.probability += (ONE - self.probability) / SMOOTHING;
        } else {
            self.probability -= self.probability / SMOOTHING;
        }
    }

    /// Stops polling for a while, after another thread took the CPU.
    fn back_off(&mut self) {
        self.backoff = self.next_backoff;
        self.next_backoff = (self.next_backoff * 2).min(MAX_BACKOFF);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LIMIT: Duration = Duration::from_micros(200);
    const SOON: Duration = Duration::from_micros(5);
    const LATE: Duration = Duration::from_millis(5);

    /// Has seen a driver that always sends its next request at once.
    fn polling() -> BusyPoll {
        let mut busy_poll = BusyPoll::new(LIMIT);
        for _ in 0..100 {
            busy_poll.record_sleep(SOON);
        }
        busy_poll
    }

    /// Whether it polls for a request that is available at once.
    fn polls(busy_poll: &mut BusyPoll) -> bool {
        busy_poll.poll(|| SOON, || true)
    }

    /// A clock that advances by `step` with each reading.
    fn passing(step: Duration) -> impl Fn() -> Duration {
        let now = Cell::new(Duration::ZERO);
        move || {
            now.set(now.get() + step);
            now.get()
        }
    }

    #[test]
    fn it_polls_for_a_driver_that_asks_at_once() {
        let mut busy_poll = BusyPoll::new(LIMIT);
        assert!(!polls(&mut busy_poll), "it has seen no request yet");
        let needed = (1..100).find(|_| {
            busy_poll.record_sleep(SOON);
            polls(&mut busy_poll)
        });
        assert!(needed.is_some_and(|needed| needed > 4), "{needed:?}");
    }

    #[test]
    fn it_never_polls_for_a_driver_that_rests_every_other_time() {
        let mut busy_poll = polling();
        for _ in 0..20 {
            busy_poll.record_sleep(LATE);
            busy_poll.record_sleep(SOON);
        }
        for _ in 0..1000 {
            busy_poll.record_sleep(LATE);
            busy_poll.record_sleep(SOON);
            assert!(!polls(&mut busy_poll));
        }
    }

    #[test]
    fn polling_that_finds_nothing_stops_at_the_limit_and_soon_altogether() {
        let mut busy_poll = polling();
        let mut polled = 0;
        loop {
            let clock = passing(SOON);
            if busy_poll.poll(&clock, || false) || clock() < LIMIT {
                break;
            }
            polled += 1;
            assert!(clock() < 2 * LIMIT);
        }
        assert!((1..10).contains(&polled), "{polled}");
        assert!(!polls(&mut busy_poll));
    }

    #[test]
    fn it_backs_off_for_longer_each_time_that_others_take_the_cpu() {
        let mut busy_poll = polling();
        let mut slept_before = 0;
        for _ in 0..5 {
            // The other threads yield the CPU only when the request has come.
            assert!(busy_poll.poll(passing(LATE), || true));
            let mut slept = 0;
            while !polls(&mut busy_poll) {
                busy_poll.record_sleep(SOON);
                slept += 1;
            }
            assert!(slept > slept_before, "{slept}, {slept_before} before");
            slept_before = slept;
        }
        for _ in 0..MAX_BACKOFF {
            busy_poll.record_sleep(SOON);
        }
        assert!(polls(&mut busy_poll), "the back-off ends");
    }

    #[test]
    fn a_limit_of_zero_never_polls() {
        let mut busy_poll = BusyPoll::new(Duration::ZERO);
        for _ in 0..100 {
            busy_poll.record_sleep(Duration::ZERO);
        }
        assert!(!polls(&mut busy_poll));
    }
}
