//! Processor time, memory and descriptors of processes.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use gangplank_tests::process::with_descendants;
use rustix::time::ClockId;

/// Nanoseconds that all threads of a process and its descendants have run. Threads that have ended
/// do not count, so none may end during a measurement.
pub(crate) fn processor_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for pid in with_descendants(pid) {
        let tasks = format!("/proc/{pid}/task");
        for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
            sum += ran_ns(&fs::read_to_string(task?.path().join("schedstat"))?)?;
        }
    }
    Ok(sum)
}

/// Nanoseconds that the calling thread has run.
pub(crate) fn own_processor_ns() -> Result<u64> {
    clock_ns(ClockId::ThreadCPUTime)
}

/// Nanoseconds that all threads of this process have run.
pub(crate) fn whole_processor_ns() -> Result<u64> {
    clock_ns(ClockId::ProcessCPUTime)
}

fn clock_ns(clock: ClockId) -> Result<u64> {
    let time = rustix::time::clock_gettime(clock);
    let nanoseconds = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    u64::try_from(nanoseconds).context("a clock before its beginning")
}

/// The first number of a schedstat file (Documentation/scheduler/sched-stats.rst).
fn ran_ns(schedstat: &str) -> Result<u64> {
    let number = schedstat.split_whitespace().next();
    let number = number.and_then(|number| number.parse().ok());
    number.with_context(|| format!("a schedstat file that reads {schedstat:?}"))
}

/// Memory and descriptors of a process and its descendants.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Held {
    /// Bytes of private resident memory, without shared pages and mapped files.
    pub(crate) memory: u64,
    /// Open descriptors.
    pub(crate) descriptors: usize,
}

/// Measures what a process and its descendants hold.
pub(crate) fn held(pid: u32) -> Result<Held> {
    let mut held = Held::default();
    // Processes that share one table of descriptors (clone(2), CLONE_FILES) list the same.
    let mut tables = BTreeSet::new();
    for pid in with_descendants(pid) {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        held.memory += 1024 * resident_kb(&status)?;
        tables.insert(descriptors(pid)?);
    }
    held.descriptors = tables.iter().map(Vec::len).sum();
    Ok(held)
}

/// The numbers of a process's descriptors and what they are open on, sorted.
fn descriptors(pid: u32) -> Result<Vec<(OsString, PathBuf)>> {
    let mut table = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        table.push((entry.file_name(), fs::read_link(entry.path())?));
    }
    table.sort();
    Ok(table)
}

/// Bytes of memory of processes that no other process shares, clean or dirty.
pub(crate) fn private_bytes(pids: &[u32]) -> Result<u64> {
    let mut bytes = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/smaps_rollup");
        let rollup = fs::read_to_string(&path).with_context(|| path.clone())?;
        bytes += 1024 * private_kb(&rollup)?;
    }
    Ok(bytes)
}

/// The sum of the private pages in an smaps_rollup file (proc_pid_smaps(5)).
fn private_kb(rollup: &str) -> Result<u64> {
    let field = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        number.with_context(|| format!("an smaps_rollup file without {name}"))
    };
    Ok(field("Private_Clean:")? + field("Private_Dirty:")?)
}

fn resident_kb(status: &str) -> Result<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.context("a process status without RssAnon")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_use_is_seen() {
        let before = own_processor_ns().unwrap();
        let sum: u64 = (0..1_000_000).map(std::hint::black_box).sum();
        assert!(sum > 0);
        assert!(own_processor_ns().unwrap() > before);
        let held = held(std::process::id()).unwrap();
        assert!(held.memory > 4096 && held.descriptors > 2, "{held:?}");
    }

    #[test]
    fn numbers_come_out_of_the_files() {
        assert_eq!(ran_ns("460392 77775 1\n").unwrap(), 460_392);
        assert!(ran_ns("").is_err());
        assert_eq!(
            resident_kb("VmRSS:\t 9 kB\nRssAnon:\t  12 kB\n").unwrap(),
            12
        );
        assert!(resident_kb("VmRSS: 9 kB").is_err());
        let rollup = "Shared_Dirty: 7 kB\nPrivate_Clean:  4 kB\nPrivate_Dirty:  12 kB\n";
        assert_eq!(private_kb(rollup).unwrap(), 16);
        assert!(private_kb("Private_Clean: 4 kB").is_err());
    }
}
