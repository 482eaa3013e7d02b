//! Whether to look for the next request for a moment before sleeping, learned from how soon requests come.
//!
//! Falling asleep and being woken takes longer than most requests: some microseconds where guest and daemon share a processor,
//! tens of them where a processor has to be woken. So a worker whose driver nearly always asks again soon goes on looking, with
//! notifications off, and the driver saves its kick as well. It offers its processor to whoever else wants it at every turn, and
//! keeps from looking for long where somebody did: an idle guest costs nothing, and a busy host is left alone.

use std::time::Duration;

/// Looks between two times that the processor is yielded to others.
const SPINS_PER_YIELD: u32 = 16;

/// What is certain. Likelihoods are parts of it.
const ONE: u32 = 1 << 16;

/// As likely as this a request has to come soon for looking to pay: three of four.
const MIN_PROBABILITY: u32 = ONE / 4 * 3;

/// By what part of what is missing to it an expectation is corrected by each request.
const SMOOTHING: u32 = 8;

/// Whoever takes the processor for longer than this, when it is yielded, needs it.
const MIN_PREEMPTION: Duration = Duration::from_micros(200);

/// How many requests are slept for after somebody else took the processor while it was yielded: at first, and at most. The
/// request that comes meanwhile waits for as long as the scheduler lets others run, some milliseconds.
const MIN_BACKOFF: u32 = 64;
const MAX_BACKOFF: u32 = 4096;

/// What one worker has learned of its driver.
#[derive(Debug)]
pub(super) struct BusyPoll {
    /// How long to look. What comes later would have been worth sleeping for.
    limit: Duration,
    /// How likely the next request is to come within that.
    probability: u32,
    /// Requests to sleep for whatever is likely.
    backoff: u32,
    /// How many that will be the next time.
    next_backoff: u32,
    /// The request that is slept for was looked for in vain.
    missed: bool,
}

impl BusyPoll {
    /// Nothing is known of the driver yet; its requests are looked for no longer than `longest`, and not at all if that is
    /// zero.
    pub(super) const fn new(limit: Duration) -> Self {
        Self {
            limit,
            probability: 0,
            backoff: 0,
            next_backoff: MIN_BACKOFF,
            missed: false,
        }
    }

    /// Looks by `has_come` for as long as that is likely to pay, where `idle` tells for how long there has been nothing to do.
    /// Whether it paid.
    pub(super) fn poll(
        &mut self,
        idle: impl Fn() -> Duration,
        has_come: impl Fn() -> bool,
    ) -> bool {
        if self.backoff > 0 || self.probability < MIN_PROBABILITY {
            return false;
        }
        let mut yielded = Duration::ZERO;
        loop {
            // First of all to the driver, which may wait for this very processor.
            std::thread::yield_now();
            let has_come = (0..SPINS_PER_YIELD).any(|_| {
                std::hint::spin_loop();
                has_come()
            });
            let now = idle();
            if has_come || now >= self.limit {
                self.update(now);
                self.missed = !has_come;
                if now.saturating_sub(yielded) >= MIN_PREEMPTION {
                    self.back_off();
                } else if has_come {
                    self.next_backoff = (self.next_backoff - 1).max(MIN_BACKOFF);
                }
                return has_come;
            }
            yielded = now;
        }
    }

    /// The next request was slept for, and came `after` there was nothing left to do.
    pub(super) fn record_sleep(&mut self, after: Duration) {
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

    /// Somebody else had the processor.
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

    /// One that knows a driver who asks at once.
    fn polling() -> BusyPoll {
        let mut busy_poll = BusyPoll::new(LIMIT);
        for _ in 0..100 {
            busy_poll.record_sleep(SOON);
        }
        busy_poll
    }

    /// Whether it looks for a request that is there at once.
    fn polls(busy_poll: &mut BusyPoll) -> bool {
        busy_poll.poll(|| SOON, || true)
    }

    /// A clock that goes on by `step` whenever somebody looks at it.
    fn passing(step: Duration) -> impl Fn() -> Duration {
        let now = Cell::new(Duration::ZERO);
        move || {
            now.set(now.get() + step);
            now.get()
        }
    }

    #[test]
    fn a_driver_that_asks_at_once_is_looked_for() {
        let mut busy_poll = BusyPoll::new(LIMIT);
        assert!(!polls(&mut busy_poll), "nothing is known of it yet");
        let needed = (1..100).find(|_| {
            busy_poll.record_sleep(SOON);
            polls(&mut busy_poll)
        });
        assert!(needed.is_some_and(|needed| needed > 4), "{needed:?}");
    }

    #[test]
    fn a_driver_that_rests_every_other_time_is_not() {
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
    fn looking_in_vain_ends_and_is_soon_given_up() {
        let mut busy_poll = polling();
        let mut looked = 0;
        loop {
            let clock = passing(SOON);
            if busy_poll.poll(&clock, || false) || clock() < LIMIT {
                break;
            }
            looked += 1;
            assert!(clock() < 2 * LIMIT);
        }
        assert!((1..10).contains(&looked), "{looked}");
        assert!(!polls(&mut busy_poll));
    }

    #[test]
    fn a_processor_that_others_want_is_left_to_them_for_longer_each_time() {
        let mut busy_poll = polling();
        let mut slept_before = 0;
        for _ in 0..5 {
            // The request has come when the others let it run again.
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
        assert!(polls(&mut busy_poll), "nobody is given up for ever");
    }

    #[test]
    fn who_may_not_look_never_does() {
        let mut busy_poll = BusyPoll::new(Duration::ZERO);
        for _ in 0..100 {
            busy_poll.record_sleep(Duration::ZERO);
        }
        assert!(!polls(&mut busy_poll));
    }
}
