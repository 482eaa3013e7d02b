//! Whether to look for the next request for a moment before sleeping, learned from how soon requests come.
//!
//! Falling asleep and being woken takes longer than most requests: some microseconds where guest and daemon share a processor,
//! tens of them where a processor has to be woken. So a worker whose driver nearly always asks again soon goes on looking, with
//! notifications off, and the driver saves its kick as well. It offers its processor to whoever else wants it at every turn, and
//! keeps from looking for long where somebody did: an idle guest costs nothing, and a busy host is left alone.

use std::time::Duration;

/// Looks between two times that the processor is offered to others.
const LOOKS: u32 = 16;

/// What is certain. Likelihoods are parts of it.
const CERTAIN: u32 = 1 << 16;

/// As likely as this a request has to come soon for looking to pay: three of four.
const WORTH_IT: u32 = CERTAIN / 4 * 3;

/// By what part of what is missing to it an expectation is corrected by each request.
const INERTIA: u32 = 8;

/// Whoever takes the processor for longer than this, when it is offered, needs it.
const CROWDED: Duration = Duration::from_micros(200);

/// How many requests are slept for after somebody else took the processor while it was offered: at first, and at most. The
/// request that comes meanwhile waits for as long as the scheduler lets others run, some milliseconds.
const SHORTEST_REST: u32 = 64;
const LONGEST_REST: u32 = 4096;

/// What one worker has learned of its driver.
#[derive(Debug)]
pub(super) struct Patience {
    /// How long to look. What comes later would have been worth sleeping for.
    longest: Duration,
    /// How likely the next request is to come within that.
    likelihood: u32,
    /// Requests to sleep for whatever is likely.
    rest: u32,
    /// How many that will be the next time.
    next_rest: u32,
    /// The request that is slept for was looked for in vain.
    in_vain: bool,
}

impl Patience {
    /// Nothing is known of the driver yet; its requests are looked for no longer than `longest`, and not at all if that is
    /// zero.
    pub(super) const fn new(longest: Duration) -> Self {
        Self {
            longest,
            likelihood: 0,
            rest: 0,
            next_rest: SHORTEST_REST,
            in_vain: false,
        }
    }

    /// Looks by `has_come` for as long as that is likely to pay, where `idle` tells for how long there has been nothing to do.
    /// Whether it paid.
    pub(super) fn look(
        &mut self,
        idle: impl Fn() -> Duration,
        has_come: impl Fn() -> bool,
    ) -> bool {
        if self.rest > 0 || self.likelihood < WORTH_IT {
            return false;
        }
        let mut offered = Duration::ZERO;
        loop {
            // First of all to the driver, which may wait for this very processor.
            std::thread::yield_now();
            let has_come = (0..LOOKS).any(|_| {
                std::hint::spin_loop();
                has_come()
            });
            let now = idle();
            if has_come || now >= self.longest {
                self.correct(now);
                self.in_vain = !has_come;
                if now.saturating_sub(offered) >= CROWDED {
                    self.stand_back();
                } else if has_come {
                    self.next_rest = (self.next_rest - 1).max(SHORTEST_REST);
                }
                return has_come;
            }
            offered = now;
        }
    }

    /// The next request was slept for, and came `after` there was nothing left to do.
    pub(super) fn learn(&mut self, after: Duration) {
        self.rest = self.rest.saturating_sub(1);
        if !std::mem::take(&mut self.in_vain) {
            self.correct(after);
        }
    }

    fn correct(&mut self, after: Duration) {
        if after < self.longest {
            self.likelihood += (CERTAIN - self.likelihood) / INERTIA;
        } else {
            self.likelihood -= self.likelihood / INERTIA;
        }
    }

    /// Somebody else had the processor.
    fn stand_back(&mut self) {
        self.rest = self.next_rest;
        self.next_rest = (self.next_rest * 2).min(LONGEST_REST);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const LONGEST: Duration = Duration::from_micros(200);
    const SOON: Duration = Duration::from_micros(5);
    const LATE: Duration = Duration::from_millis(5);

    /// One that knows a driver who asks at once.
    fn patient() -> Patience {
        let mut patience = Patience::new(LONGEST);
        for _ in 0..100 {
            patience.learn(SOON);
        }
        patience
    }

    /// Whether it looks for a request that is there at once.
    fn looks(patience: &mut Patience) -> bool {
        patience.look(|| SOON, || true)
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
        let mut patience = Patience::new(LONGEST);
        assert!(!looks(&mut patience), "nothing is known of it yet");
        let needed = (1..100).find(|_| {
            patience.learn(SOON);
            looks(&mut patience)
        });
        assert!(needed.is_some_and(|needed| needed > 4), "{needed:?}");
    }

    #[test]
    fn a_driver_that_rests_every_other_time_is_not() {
        let mut patience = patient();
        for _ in 0..20 {
            patience.learn(LATE);
            patience.learn(SOON);
        }
        for _ in 0..1000 {
            patience.learn(LATE);
            patience.learn(SOON);
            assert!(!looks(&mut patience));
        }
    }

    #[test]
    fn looking_in_vain_ends_and_is_soon_given_up() {
        let mut patience = patient();
        let mut looked = 0;
        loop {
            let clock = passing(SOON);
            if patience.look(&clock, || false) || clock() < LONGEST {
                break;
            }
            looked += 1;
            assert!(clock() < 2 * LONGEST);
        }
        assert!((1..10).contains(&looked), "{looked}");
        assert!(!looks(&mut patience));
    }

    #[test]
    fn a_processor_that_others_want_is_left_to_them_for_longer_each_time() {
        let mut patience = patient();
        let mut slept_before = 0;
        for _ in 0..5 {
            // The request has come when the others let it run again.
            assert!(patience.look(passing(LATE), || true));
            let mut slept = 0;
            while !looks(&mut patience) {
                patience.learn(SOON);
                slept += 1;
            }
            assert!(slept > slept_before, "{slept}, {slept_before} before");
            slept_before = slept;
        }
        for _ in 0..LONGEST_REST {
            patience.learn(SOON);
        }
        assert!(looks(&mut patience), "nobody is given up for ever");
    }

    #[test]
    fn who_may_not_look_never_does() {
        let mut patience = Patience::new(Duration::ZERO);
        for _ in 0..100 {
            patience.learn(Duration::ZERO);
        }
        assert!(!looks(&mut patience));
    }
}
