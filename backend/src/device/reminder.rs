//! Signals once more for a driver that sleeps although there are replies for it.
//!
//! User Mode Linux before 6.17 can lose an interrupt that arrives while its processor goes idle: the
//! interrupt is handled, and the process sleeps all the same until its next timer tick, some
//! milliseconds later (`os_idle_sleep`, `arch/um/os-Linux/time.c`). A reply within some 30 us hits
//! that moment again and again. So the worker looks, while it polls for the next request and before
//! it sleeps, whether the driver has taken what was returned: `used_event` then is the device's
//! index (virtio 1.2, 2.7.7). If it has not, another signal ends the sleep.
//!
//! Only for drivers whose call descriptor is a socket or a pipe, as only that of User Mode Linux
//! is. Virtual machines look at pending interrupts when a processor halts.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a driver has to take a reply. A signal that was not needed costs it an interrupt: with
/// a quarter of this, half of the creations of files are lost, with half of it a tenth.
const PATIENCE: Duration = Duration::from_micros(60);

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

    /// Waits, before the worker sleeps, until the driver has taken the replies, which `has_untaken`
    /// tells, has been signalled often enough, or has a new request. Returns whether it has one.
    ///
    /// `has_request` also calls [`Reminder::look`]. The wait takes as long as the guest needs to
    /// wake up, at most `PATIENCE` for each signal.
    pub(super) fn wait(
        &self,
        has_request: impl Fn() -> bool,
        has_untaken: impl Fn() -> bool,
    ) -> bool {
        while self.signalled.get().is_some() {
            if !has_untaken() {
                self.signalled.set(None);
                return false;
            }
            // The guest may be waiting for this CPU.
            std::thread::yield_now();
            if has_request() {
                return true;
            }
        }
        false
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

    /// Waits as a worker does. Returns whether a request came, and the number of signals.
    fn wait(reminder: &Reminder, untaken: &Cell<bool>, has_request: bool) -> (bool, u32) {
        let sent = Cell::new(0);
        let has_request = || {
            reminder.look(|| untaken.get(), || sent.set(sent.get() + 1));
            has_request
        };
        (reminder.wait(has_request, || untaken.get()), sent.get())
    }

    #[test]
    fn a_worker_does_not_sleep_before_its_driver_has_woken_up() {
        let reminder = Reminder::default();
        let untaken = Cell::new(true);
        assert_eq!(wait(&reminder, &untaken, false), (false, 0), "no reply");
        reminder.signalled();
        let start = Instant::now();
        assert_eq!(wait(&reminder, &untaken, false), (false, MAX_REMINDERS));
        assert!(start.elapsed() >= PATIENCE * MAX_REMINDERS);
        assert_eq!(wait(&reminder, &untaken, false), (false, 0), "it gave up");

        reminder.signalled();
        untaken.set(false);
        assert_eq!(wait(&reminder, &untaken, false), (false, 0), "it is awake");

        reminder.signalled();
        untaken.set(true);
        assert!(wait(&reminder, &untaken, true).0, "it asks again");
    }
}
