//! A lock that threads get in the order in which they asked for it, with a deadline.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// The lock and its queue.
#[derive(Debug, Default)]
pub(super) struct FairLock {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// The first ticket holds the lock.
    tickets: VecDeque<u64>,
    next: u64,
}

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    fair_lock: &'a FairLock,
}

impl FairLock {
    /// Waits for the lock. Returns `None` if it was not free before `deadline`.
    pub(super) fn take(&self, deadline: Instant) -> Option<Guard<'_>> {
        let mut queue = self.queue.lock();
        let ticket = queue.next;
        queue.next = queue.next.wrapping_add(1);
        queue.tickets.push_back(ticket);
        while queue.tickets.front() != Some(&ticket) {
            let late = self.changed.wait_until(&mut queue, deadline).timed_out();
            if late && queue.tickets.front() != Some(&ticket) {
                queue.tickets.retain(|&waiting| waiting != ticket);
                return None;
            }
        }
        Some(Guard { fair_lock: self })
    }
}

#[cfg(test)]
impl FairLock {
    /// Whether no thread holds the lock.
    pub(super) fn is_free(&self) -> bool {
        self.queue.lock().tickets.is_empty()
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let mut queue = self.fair_lock.queue.lock();
        queue.tickets.pop_front();
        let is_wanted = !queue.tickets.is_empty();
        drop(queue);
        if is_wanted {
            self.fair_lock.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_waiter_that_times_out_does_not_block_the_next() {
        let fair_lock = FairLock::default();
        let first = fair_lock.take(soon()).unwrap();
        assert!(fair_lock.take(soon()).is_none());
        drop(first);
        assert!(fair_lock.take(soon()).is_some());
    }

    #[test]
    fn waiters_get_the_lock_in_order() {
        let fair_lock = Arc::new(FairLock::default());
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = fair_lock.take(late()).unwrap();
        let threads: Vec<_> = (0..8)
            .map(|index| {
                let (here, log) = (fair_lock.clone(), order.clone());
                let thread = thread::spawn(move || {
                    let _guard = here.take(late());
                    log.lock().push(index);
                });
                while fair_lock.queue.lock().tickets.len() < index + 2 {
                    thread::yield_now();
                }
                thread
            })
            .collect();
        drop(first);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(*order.lock(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
