//! The host's clocks.

use rustix::time::{ClockId, clock_gettime};

/// The time of a clock in nanoseconds: since the epoch or since the host's start, as the clock
/// counts. Reading one makes no system call.
pub fn now(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec)
}
