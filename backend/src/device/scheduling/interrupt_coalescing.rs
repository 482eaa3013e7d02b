//! Decides whether a worker notifies the driver after each reply of a batch or once at its end.
//!
//! A driver with a CPU of its own profits from a notification per reply: it works in parallel to
//! the daemon, and by the time it is awake more replies are ready. A driver that shares the
//! worker's CPU would preempt the worker after every reply, so it gets one notification at the end
//! of the batch. The worker tells the two apart by how often the kernel preempts it.
//!
//! ```text
//!           ┌─ preempted in few batches ──> Immediate ─┐
//! Trial ────┤                                          ├──> Trial
//!           └─ preempted in many ─────────> Batched ───┘
//! ```

/// Batches of one trial. During a trial, the worker notifies per reply and counts preemptions.
const TRIAL_BATCHES: u32 = 16;

/// Batches of a trial in which the worker may lose its CPU before the driver counts as sharing it.
const MAX_PREEMPTED_BATCHES: u32 = 4;

/// Batches with a notification per reply, after a trial with few preemptions.
const IMMEDIATE_BATCHES: u32 = 1024;

/// Batches with one notification each, after the first trial with many preemptions.
const MIN_BATCHED: u32 = 64;

/// Most batches with one notification each; each further such trial doubles the number up to this.
const MAX_BATCHED: u32 = 16384;

/// How one worker notifies its driver, and what it learned of the CPU that driver runs on.
#[derive(Debug)]
pub(super) struct InterruptCoalescing {
    phase: Phase,
    /// Batches until the next phase.
    left: u32,
    /// Length of the next [`Phase::Batched`], in batches.
    next_batched: u32,
    /// Preemptions of this thread before the current batch; `None` outside a trial.
    preemptions_before: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Notifies per reply and counts the batches in which the worker was preempted.
    Trial(u32),
    /// Notifies per reply.
    Immediate,
    /// Notifies once per batch.
    Batched,
}

/// When the driver is notified of a batch's replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotifyMode {
    /// After each reply.
    Immediate,
    /// Once for all replies.
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
    /// Begins a batch and returns how to notify the driver of its replies.
    ///
    /// `preemptions` returns how often the kernel has preempted this thread. It costs a system call
    /// and is called during trials only.
    pub(super) fn begin(&mut self, preemptions: impl Fn() -> u64) -> NotifyMode {
        self.preemptions_before = matches!(self.phase, Phase::Trial(_)).then(preemptions);
        match self.phase {
            Phase::Batched => NotifyMode::Batched,
            Phase::Trial(_) | Phase::Immediate => NotifyMode::Immediate,
        }
    }

    /// Ends the batch.
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

    /// Runs `batches`, each of which is preempted `each` times unless it is batched, and returns
    /// how many were batched.
    fn coalesced(coalescing: &mut InterruptCoalescing, batches: u32, each: u64) -> u32 {
        let preemptions = Cell::new(0);
        let mut batched = 0;
        for _ in 0..batches {
            match coalescing.begin(|| preemptions.get()) {
                NotifyMode::Batched => batched += 1,
                NotifyMode::Immediate => preemptions.set(preemptions.get() + each),
            }
            coalescing.end(|| preemptions.get());
            // Preemptions between batches do not count.
            preemptions.set(preemptions.get() + 1);
        }
        batched
    }

    #[test]
    fn a_driver_with_a_cpu_of_its_own_is_notified_at_once() {
        assert_eq!(
            coalesced(&mut InterruptCoalescing::default(), 100_000, 0),
            0
        );
    }

    #[test]
    fn a_driver_on_the_same_cpu_is_notified_at_the_end() {
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
