//! The processors that a thread may run on.

use std::fs;

use anyhow::Context;
use gangplank_tests::process::with_descendants;
use rustix::io::{Errno, Result};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that the calling thread may run on, the last one first, because the first one
/// serves more interrupts.
///
/// # Errors
/// `sched_getaffinity(2)`'s.
pub fn allowed() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    let numbers = (0..CpuSet::MAX_CPU).rev();
    Ok(numbers.filter(|at| allowed.is_set(*at)).collect())
}

/// The set of processor `number` alone.
#[must_use]
pub fn only(number: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(number);
    set
}

/// Pins the calling thread, and every thread and process that it starts from now on, to processor
/// `number`.
///
/// # Errors
/// `sched_setaffinity(2)`'s.
pub fn stay_on(number: usize) -> Result<()> {
    sched_setaffinity(None, &only(number))
}

/// Pins every thread of process `pid`, and of those that it has started, to processor `number`.
/// Threads that they start later inherit this.
///
/// # Errors
/// A process cannot be looked at, or `sched_setaffinity(2)`'s.
pub fn keep_on(pid: u32, number: usize) -> anyhow::Result<()> {
    for pid in with_descendants(pid) {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = task?.file_name();
            let task: i32 = name.to_string_lossy().parse()?;
            let task = Pid::from_raw(task).context("a thread without a number")?;
            match sched_setaffinity(Some(task), &only(number)) {
                // The thread has ended.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno).context("choosing a process's processor"),
            }
        }
    }
    Ok(())
}

/// Lets the calling thread, and what it starts from now on, run on each of `numbers`.
///
/// # Errors
/// `sched_setaffinity(2)`'s.
pub fn stay_on_any(numbers: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    numbers.iter().for_each(|number| set.set(*number));
    sched_setaffinity(None, &set)
}
