//! Locks and waits as this crate uses them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Locks `mutex`. A thread that panicked with it locked has broken an assertion, and nothing of what is kept in locks here
/// is left half done between two statements that can.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on `changed` once, at most until `deadline`; whether that has passed comes with the lock.
pub(crate) fn wait_until<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Instant,
) -> (MutexGuard<'a, T>, bool) {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return (guard, true);
    }
    let (guard, _) = changed
        .wait_timeout(guard, left)
        .unwrap_or_else(PoisonError::into_inner);
    (guard, Instant::now() >= deadline)
}
