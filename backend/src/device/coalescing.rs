//! Whether the driver is told of each answer of a batch at once or of all together, learned from whom that wakes.
//!
//! A driver that has a processor to itself is told at once: by the time it is awake the rest is done, and it works beside
//! the daemon. One that shares the worker's processor would take it away after every single answer, and is told at the end.
//! Which of them it is shows in how often the kernel takes the processor away from the worker.

/// Batches between two looks at how often the processor was taken away.
const TRIAL: u32 = 16;

/// In that many of them it may have been, by whoever else is about.
const TOLERATED: u64 = 4;

/// Batches that are announced together after a trial that went badly: at first, and at most.
const SHORTEST: u32 = 64;
const LONGEST: u32 = 16384;

/// What one worker has learned of its driver.
#[derive(Debug)]
pub(super) struct Coalescing {
    /// Batches until the next decision.
    left: u32,
    /// How often the processor had been taken away when the trial began; none when there is no trial.
    trial: Option<u64>,
    /// For how long to coalesce after the next trial that goes badly.
    next: u32,
}

impl Default for Coalescing {
    fn default() -> Self {
        Self {
            left: 0,
            trial: None,
            next: SHORTEST,
        }
    }
}

impl Coalescing {
    /// Whether the next batch's answers are announced together. `preemptions` tells how often the processor has been taken
    /// away from this thread; it is seldom asked.
    pub(super) fn next_batch(&mut self, preemptions: impl Fn() -> u64) -> bool {
        if self.left == 0 {
            let now = preemptions();
            match self.trial {
                Some(before) if now.saturating_sub(before) > TOLERATED => {
                    self.trial = None;
                    self.left = self.next;
                    self.next = (self.next * 2).min(LONGEST);
                }
                tried => {
                    if tried.is_some() {
                        self.next = SHORTEST;
                    }
                    self.trial = Some(now);
                    self.left = TRIAL;
                }
            }
        }
        self.left -= 1;
        self.trial.is_none()
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
            if coalescing.next_batch(|| preemptions.get()) {
                together += 1;
            } else {
                preemptions.set(preemptions.get() + each);
            }
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
        coalesced(&mut coalescing, LONGEST, 0);
        assert_eq!(coalesced(&mut coalescing, 100_000, 0), 0);
        let together = coalesced(&mut coalescing, 100_000, 1);
        assert!(together > 99_000, "{together}");
    }
}
