//! Signals once more for a driver that sleeps although there are replies for it.
//!
//! User Mode Linux before 6.17 can lose an interrupt that arrives while its processor goes idle: the
//! interrupt is handled, and the process sleeps all the same until its next timer tick, some
//! milliseconds later (`os_idle_sleep`, `arch/um/os-Linux/time.c`). A reply within some 30 us hits
//! that moment again and again. So the worker looks, while it polls for the next request, whether
//! the driver has taken what was returned: `used_event` then is the device's index (virtio 1.2,
//! 2.7.7). If it has not, another signal ends the sleep.
//!
//! Only for drivers whose call descriptor is a pipe, as only that of User Mode Linux is. Virtual
//! machines look at pending interrupts when a processor halts.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a driver has to take a reply. A signal that was not needed costs it an interrupt: with
/// half of this, more is lost than won.
const PATIENCE: Duration = Duration::from_micros(30);

/// Most signals for one reply after the first.
const MAX_REMINDERS: u32 = 4;

/// What one ring's worker knows of its last signal.
#[derive(Debug, Default)]
pub(super) struct Reminder {
    /// The last signal of which it is not known whether the driver has seen it.
    signalled: Cell<Option<Instant>>,
    /// Signals since the first one of these replies.
    repeated: Cell<u32>,
}

impl Reminder {
    /// The worker has signalled a driver that can miss it.
    pub(super) fn signalled(&self) {
        self.signalled.set(Some(Instant::now()));
        self.repeated.set(0);
    }

    /// Signals again with `signal` if the driver has had time for the last signal and has still
    /// replies to take.
    pub(super) fn look(&self, has_untaken: impl FnOnce() -> bool, signal: impl FnOnce()) {
        let Some(since) = self.signalled.get() else {
            return;
        };
        if since.elapsed() < PATIENCE {
            return;
        }
        let repeated = self.repeated.get();
        if repeated >= MAX_REMINDERS || !has_untaken() {
            self.signalled.set(None);
            return;
        }
        signal();
        self.repeated.set(repeated + 1);
        self.signalled.set(Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(reminder: &Reminder, has_untaken: bool) -> u32 {
        let count = Cell::new(0);
        reminder.look(|| has_untaken, || count.set(count.get() + 1));
        count.get()
    }

    #[test]
    fn a_driver_that_takes_its_replies_is_signalled_once() {
        let reminder = Reminder::default();
        assert_eq!(signals(&reminder, true), 0, "nothing was returned");
        reminder.signalled();
        std::thread::sleep(PATIENCE);
        assert_eq!(signals(&reminder, false), 0);
        assert_eq!(signals(&reminder, true), 0, "it is known to be awake");
    }

    #[test]
    fn a_driver_that_sleeps_is_signalled_a_few_times() {
        let reminder = Reminder::default();
        reminder.signalled();
        let mut sent = 0;
        for _ in 0..10 {
            std::thread::sleep(PATIENCE);
            sent += signals(&reminder, true);
        }
        assert_eq!(sent, MAX_REMINDERS);
    }
}
