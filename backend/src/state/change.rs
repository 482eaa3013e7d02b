//! Single changes of an arena, in the order in which they are written.
//!
//! A worker can be killed before each of them. What it changed before that stays, so the order of
//! changes is what the next worker relies on. Each change releases: neither the compiler nor the
//! processor moves an earlier one behind it.
//!
//! A test has a change not happen, and all that follow it, with `killing::until`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A number in an arena.
pub trait Place {
    /// The type of the number.
    type Number: Copy;

    /// Stores a number.
    fn set(&self, number: Self::Number);

    /// Adds, and returns the number before. It wraps around.
    fn add(&self, number: Self::Number) -> Self::Number;

    /// Subtracts, and returns the number before. It wraps around.
    fn subtract(&self, number: Self::Number) -> Self::Number;

    /// Replaces the number by `change` of it. Returns false, and changes nothing, if that is
    /// `None`.
    fn change_if_some(&self, change: impl FnMut(Self::Number) -> Option<Self::Number>) -> bool;
}

macro_rules! place {
    ($($atomic:ty: $number:ty),*) => {
        $(
            impl Place for $atomic {
                type Number = $number;

                fn set(&self, number: $number) {
                    if !is_killed() {
                        self.store(number, Ordering::Release);
                    }
                }

                fn add(&self, number: $number) -> $number {
                    match is_killed() {
                        true => self.load(Ordering::Relaxed),
                        false => self.fetch_add(number, Ordering::AcqRel),
                    }
                }

                fn subtract(&self, number: $number) -> $number {
                    match is_killed() {
                        true => self.load(Ordering::Relaxed),
                        false => self.fetch_sub(number, Ordering::AcqRel),
                    }
                }

                fn change_if_some(&self, change: impl FnMut($number) -> Option<$number>) -> bool {
                    is_killed()
                        || self
                            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
                            .is_ok()
                }
            }
        )*
    };
}

place!(AtomicU32: u32, AtomicU64: u64);

#[cfg(not(test))]
const fn is_killed() -> bool {
    false
}

#[cfg(test)]
use killing::is_killed;

/// Ends a test's work before one of its changes.
#[cfg(test)]
pub(crate) mod killing {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::thread;

    thread_local! {
        /// Changes that the thread may still make.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    struct Killed;

    /// Does `work` up to its change number `changes`, counted from 0. Returns `None` if it has that
    /// many: it ended there, by unwinding, and none of the destructors changed an arena.
    pub(crate) fn until<T>(changes: usize, work: impl FnOnce() -> T) -> Option<T> {
        LEFT.set(Some(changes));
        let result = catch_unwind(AssertUnwindSafe(work));
        LEFT.set(None);
        match result {
            Ok(done) => Some(done),
            Err(killed) if killed.is::<Killed>() => None,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Whether the change that comes next does not happen.
    pub(super) fn is_killed() -> bool {
        match LEFT.get() {
            None => false,
            Some(0) if thread::panicking() => true,
            Some(0) => resume_unwind(Box::new(Killed)),
            Some(left) => {
                LEFT.set(Some(left - 1));
                false
            }
        }
    }
}
