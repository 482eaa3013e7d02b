//! Whether the driver is told of each answer of a batch at once or of all together, learned from whom that wakes.
//!
//! A driver that has a processor to itself is told at once: by the time it is awake the rest is done, and it works beside
//! the daemon. One that shares the worker's processor would take it away after every single answer, and is told at the end.
//! Which of them it is shows in how often the kernel takes the processor away from the worker.

/// Batches of a trial, in which is counted how often the processor is taken away.
const TRIAL_BATCHES: u32 = 16;

/// In that many of them it may be, by whoever else is about.
const MAX_PREEMPTED_BATCHES: u32 = 4;

/// Batches between two trials after one that went well.
const IMMEDIATE_BATCHES: u32 = 1024;

/// Batches that are announced together after a trial that went badly: at first, and at most.
const MIN_BATCHED: u32 = 64;
const MAX_BATCHED: u32 = 16384;

/// What one worker has learned of its driver.
#[derive(Debug)]
pub(super) struct InterruptCoalescing {
    phase: Phase,
    /// Batches until the next phase.
    left: u32,
    /// For how long to coalesce after the next trial that goes badly.
    next_batched: u32,
    /// How often the processor had been taken away before this batch, if that is counted.
    preemptions_before: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Announcing each, and counting in how many batches the processor was taken away.
    Trial(u32),
    /// Announcing each.
    Immediate,
    /// Announcing all together.
    Batched,
}

/// How a batch is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotifyMode {
    /// Each answer at once.
    Immediate,
    /// All answers together.
    Batched,
}

impl Default for InterruptCoalescing {
    fn default() -> Self {
        Self {
            phase: Phase::Trial(0),
            left: TRIAL_BATCHES,
            next_batched: MIN_BATCHED,
            preemptions_before: None,
        }
    }
}

impl InterruptCoalescing {
    /// How the next batch's answers are announced. `preemptions` tells how often the processor has been taken away from this
    /// thread; it is seldom asked.
    pub(super) fn begin(&mut self, preemptions: impl Fn() -> u64) -> NotifyMode {
        self.preemptions_before = matches!(self.phase, Phase::Trial(_)).then(preemptions);
        match self.phase {
            Phase::Batched => NotifyMode::Batched,
            Phase::Trial(_) | Phase::Immediate => NotifyMode::Immediate,
        }
    }

    /// That batch is done.
    pub(super) fn end(&mut self, preemptions: impl Fn() -> u64) {
        if let (Phase::Trial(count), Some(before)) = (&mut self.phase, self.preemptions_before)
            && preemptions() > before
        {
            *count += 1;
        }
        self.left -= 1;
        if self.left > 0 {
            return;
        }
        (self.phase, self.left) = match self.phase {
            Phase::Trial(count) if count > MAX_PREEMPTED_BATCHES => {
                let length = self.next_batched;
                self.next_batched = (self.next_batched * 2).min(MAX_BATCHED);
                (Phase::Batched, length)
            }
            Phase::Trial(_) => {
                self.next_batched = MIN_BATCHED;
                (Phase::Immediate, IMMEDIATE_BATCHES)
            }
            Phase::Immediate | Phase::Batched => (Phase::Trial(0), TRIAL_BATCHES),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// How many of `batches` are coalesced, if one that is not has the processor taken away `each` times.
    fn coalesced(coalescing: &mut InterruptCoalescing, batches: u32, each: u64) -> u32 {
        let preemptions = Cell::new(0);
        let mut batched = 0;
        for _ in 0..batches {
            match coalescing.begin(|| preemptions.get()) {
                NotifyMode::Batched => batched += 1,
                NotifyMode::Immediate => preemptions.set(preemptions.get() + each),
            }
            coalescing.end(|| preemptions.get());
            // What happens between batches is the worker's own doing.
            preemptions.set(preemptions.get() + 1);
        }
        batched
    }

    #[test]
    fn a_driver_with_a_processor_of_its_own_is_told_at_once() {
        assert_eq!(
            coalesced(&mut InterruptCoalescing::default(), 100_000, 0),
            0
        );
    }

    #[test]
    fn a_driver_on_the_same_processor_is_told_at_the_end() {
        let batched = coalesced(&mut InterruptCoalescing::default(), 100_000, 1);
        assert!(batched > 99_000, "{batched}");
    }

    #[test]
    fn a_driver_that_moves_is_found_out() {
        let mut coalescing = InterruptCoalescing::default();
        coalesced(&mut coalescing, 100_000, 1);
        coalesced(&mut coalescing, MAX_BATCHED + TRIAL_BATCHES, 0);
        assert_eq!(coalesced(&mut coalescing, 100_000, 0), 0);
        let batched = coalesced(&mut coalescing, 100_000, 1);
        assert!(batched > 99_000, "{batched}");
    }
}
