//! Whether the driver is told of each answer of a batch at once or of all together, learned from whom that wakes.
//!
//! A driver that has a processor to itself is told at once: by the time it is awake the rest is done, and it works beside
//! the daemon. One that shares the worker's processor would take it away after every single answer, and is told at the end.
//! Which of them it is shows in how often the kernel takes the processor away from the worker.

/// Batches of a trial, in which is counted how often the processor is taken away.
const TRIAL: u32 = 16;

/// In that many of them it may be, by whoever else is about.
const TOLERATED: u32 = 4;

/// Batches between two trials after one that went well.
const UNTRIED: u32 = 1024;

/// Batches that are announced together after a trial that went badly: at first, and at most.
const SHORTEST: u32 = 64;
const LONGEST: u32 = 16384;

/// What one worker has learned of its driver.
#[derive(Debug)]
pub(super) struct Coalescing {
    phase: Phase,
    /// Batches until the next phase.
    left: u32,
    /// For how long to coalesce after the next trial that goes badly.
    next: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Announcing each, and counting in how many batches the processor was taken away.
    Trial(u32),
    /// Announcing each.
    Each,
    /// Announcing all together.
    Together,
}

/// How a batch is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    /// Whether all answers are announced together.
    pub(super) together: bool,
    /// How often the processor had been taken away before, if that is counted.
    before: Option<u64>,
}

impl Default for Coalescing {
    fn default() -> Self {
        Self {
            phase: Phase::Trial(0),
            left: TRIAL,
            next: SHORTEST,
        }
    }
}

impl Coalescing {
    /// How the next batch's answers are announced. `preemptions` tells how often the processor has been taken away from this
    /// thread; it is seldom asked.
    pub(super) fn begin(&self, preemptions: impl Fn() -> u64) -> Manner {
        Manner {
            together: self.phase == Phase::Together,
            before: matches!(self.phase, Phase::Trial(_)).then(preemptions),
        }
    }

    /// That batch is done.
    pub(super) fn end(&mut self, manner: Manner, preemptions: impl Fn() -> u64) {
        if let (Phase::Trial(count), Some(before)) = (&mut self.phase, manner.before)
            && preemptions() > before
        {
            *count += 1;
        }
        self.left -= 1;
        if self.left > 0 {
            return;
        }
        (self.phase, self.left) = match self.phase {
            Phase::Trial(count) if count > TOLERATED => {
                let length = self.next;
                self.next = (self.next * 2).min(LONGEST);
                (Phase::Together, length)
            }
            Phase::Trial(_) => {
                self.next = SHORTEST;
                (Phase::Each, UNTRIED)
            }
            Phase::Each | Phase::Together => (Phase::Trial(0), TRIAL),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// How many of `batches` are coalesced, if one that is not has the processor taken away `each` times.
    fn coalesced(coalescing: &mut Coalescing, batches: u32, each: u64) -> u32 {
        let preemptions = Cell::new(0);
        let mut together = 0;
        for _ in 0..batches {
            let manner = coalescing.begin(|| preemptions.get());
            if manner.together {
                together += 1;
            } else {
                preemptions.set(preemptions.get() + each);
            }
            coalescing.end(manner, || preemptions.get());
            // What happens between batches is the worker's own doing.
            preemptions.set(preemptions.get() + 1);
        }
        together
    }

    #[test]
    fn a_driver_with_a_processor_of_its_own_is_told_at_once() {
        assert_eq!(coalesced(&mut Coalescing::default(), 100_000, 0), 0);
    }

    #[test]
    fn a_driver_on_the_same_processor_is_told_at_the_end() {
        let together = coalesced(&mut Coalescing::default(), 100_000, 1);
        assert!(together > 99_000, "{together}");
    }

    #[test]
    fn a_driver_that_moves_is_found_out() {
        let mut coalescing = Coalescing::default();
        coalesced(&mut coalescing, 100_000, 1);
        coalesced(&mut coalescing, LONGEST + TRIAL, 0);
        assert_eq!(coalesced(&mut coalescing, 100_000, 0), 0);
        let together = coalesced(&mut coalescing, 100_000, 1);
        assert!(together > 99_000, "{together}");
    }
}
