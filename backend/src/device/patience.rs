//! Whether to look for the next request for a moment before sleeping, learned from how soon requests come.
//!
//! Falling asleep and being woken takes longer than most requests: some microseconds where guest and daemon share a processor,
//! tens of them where a processor has to be woken. So a worker whose driver asks again at once goes on looking, with
//! notifications off, and the driver saves its kick as well. It gives its processor to whoever else wants it at every turn, and
//! stops as soon as that does not pay: an idle guest costs nothing.

use std::time::Duration;

/// How long to look. What comes later would have been worth sleeping for.
const LONGEST: Duration = Duration::from_micros(50);

/// Looks between two times that the processor is offered to others.
const LOOKS: u32 = 16;

/// Requests that have to come soon, one after another, before it is worth looking: at first, and after many disappointments.
const LEAST_CAUTION: u32 = 4;
const MOST_CAUTION: u32 = 4096;

/// What one worker has learned of its driver.
#[derive(Debug)]
pub(super) struct Patience {
    /// Requests in a row that came soon.
    soon: u32,
    /// How many it takes to look for the next.
    caution: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            soon: 0,
            caution: LEAST_CAUTION,
        }
    }
}

impl Patience {
    /// Looks by `has_come` for as long as that is likely to pay, where `idle` tells for how long there has been nothing to do.
    /// Whether it paid.
    pub(super) fn look(
        &mut self,
        idle: impl Fn() -> Duration,
        has_come: impl Fn() -> bool,
    ) -> bool {
        if self.soon < self.caution {
            return false;
        }
        loop {
            // First of all to the driver, which may wait for this very processor.
            std::thread::yield_now();
            for _ in 0..LOOKS {
                if has_come() {
                    self.learn(idle());
                    return true;
                }
                std::hint::spin_loop();
            }
            if idle() > LONGEST {
                self.disappointed();
                return false;
            }
        }
    }

    /// The next request came `after` there was nothing left to do.
    pub(super) fn learn(&mut self, after: Duration) {
        if after > LONGEST {
            // Somebody else had the processor, or the driver had something else to do.
            self.disappointed();
            return;
        }
        self.soon = self.soon.saturating_add(1);
        if self.soon > self.caution {
            self.caution = (self.caution - 1).max(LEAST_CAUTION);
        }
    }

    fn disappointed(&mut self) {
        if self.soon >= self.caution {
            self.caution = (self.caution * 2).min(MOST_CAUTION);
        }
        self.soon = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SOON: Duration = Duration::from_micros(5);
    const LATE: Duration = Duration::from_millis(5);

    fn looks(patience: &mut Patience) -> bool {
        patience.look(|| SOON, || true)
    }

    #[test]
    fn a_driver_that_asks_at_once_is_looked_for() {
        let mut patience = Patience::default();
        assert!(!looks(&mut patience), "nothing is known of it yet");
        for _ in 0..LEAST_CAUTION {
            patience.learn(SOON);
        }
        assert!(looks(&mut patience));
    }

    #[test]
    fn a_driver_that_rests_is_not() {
        let mut patience = Patience::default();
        for _ in 0..1000 {
            patience.learn(LATE);
            patience.learn(SOON);
            assert!(!looks(&mut patience));
        }
    }

    #[test]
    fn looking_in_vain_ends_and_makes_cautious() {
        let mut patience = Patience::default();
        let mut needed_before = 0;
        for _ in 0..6 {
            let mut needed = 0;
            while !looks(&mut patience) {
                patience.learn(SOON);
                needed += 1;
            }
            assert!(needed > needed_before, "{needed}, {needed_before} before");
            needed_before = needed;
            let now = Cell::new(Duration::ZERO);
            let passing = || {
                now.set(now.get() + SOON);
                now.get()
            };
            assert!(!patience.look(passing, || false));
            assert!(now.get() > LONGEST && now.get() < 2 * LONGEST);
        }
        for _ in 0..MOST_CAUTION {
            patience.learn(SOON);
        }
        assert!(looks(&mut patience), "nobody is given up for ever");
    }
}
