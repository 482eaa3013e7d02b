//! Which processors a thread runs on.

use rustix::io::Result;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Those that the calling thread may run on, the last first: the first has more interrupts to
/// serve.
///
/// # Errors
/// `sched_getaffinity(2)`'s.
pub fn allowed() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    let numbers = (0..CpuSet::MAX_CPU).rev();
    Ok(numbers.filter(|at| allowed.is_set(*at)).collect())
}

/// Nothing but processor `number`.
#[must_use]
pub fn only(number: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(number);
    set
}

/// Has the calling thread, and every thread and process that it starts from now on, run on
/// processor `number`.
///
/// # Errors
/// `sched_setaffinity(2)`'s.
pub fn stay_on(number: usize) -> Result<()> {
    sched_setaffinity(None, &only(number))
}
