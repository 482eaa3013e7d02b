//! What the kernel does for a daemon: system calls, switches and wake-ups, by `perf stat`.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::process::{signal, wait_within};
use rustix::process::Signal;
use tempfile::NamedTempFile;

/// The events: entries into system calls, those into sched_yield(2), wake-ups of other threads, and
/// switches away from a thread.
const EVENTS: [&str; 4] = [
    "raw_syscalls:sys_enter",
    "syscalls:sys_enter_sched_yield",
    "sched:sched_waking",
    "context-switches",
];

/// How long perf may take to begin or to end.
const LIMIT: Duration = Duration::from_secs(10);

/// Numbers of events in all threads of some processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelCounts {
    /// System calls that were entered, without `yields`.
    pub(crate) system_calls: u64,
    /// How often a thread that polls let others run.
    pub(crate) yields: u64,
    /// Threads that were woken, those of the guest included.
    pub(crate) wake_ups: u64,
    /// How often a thread left its processor.
    pub(crate) switches: u64,
}

/// Counts until it ends.
pub(crate) struct Counting {
    perf: Child,
    counted: NamedTempFile,
}

impl Counting {
    /// Counts the events of these processes' threads, and of the threads that they start.
    ///
    /// # Errors
    /// There is no `perf`, or it may not count: it takes root.
    pub(crate) fn start(processes: &[u32]) -> Result<Self> {
        let counted = NamedTempFile::new()?;
        let pids: Vec<String> = processes.iter().map(u32::to_string).collect();
        let mut perf = Command::new("perf")
            .args([
                "stat",
                "-x",
                ";",
                "-e",
                &EVENTS.join(","),
                "-p",
                &pids.join(","),
            ])
            .arg("-o")
            .arg(counted.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("running perf, which the package linux-perf has")?;
        let threads: usize = processes
            .iter()
            .map(|pid| entries(&format!("/proc/{pid}/task")))
            .sum();
        let begun = Instant::now();
        while open_events(perf.id()) < threads * EVENTS.len() {
            ensure!(
                perf.try_wait()?.is_none() && begun.elapsed() < LIMIT,
                "perf does not count; it takes root, and tracing in the kernel"
            );
            thread::sleep(Duration::from_millis(2));
        }
        Ok(Self { perf, counted })
    }

    /// Ends the counting.
    ///
    /// # Errors
    /// perf fails, or an event is not counted.
    pub(crate) fn end(mut self) -> Result<KernelCounts> {
        signal(&self.perf, Signal::INT)?;
        wait_within(&mut self.perf, LIMIT)?;
        let text = fs::read_to_string(self.counted.path())?;
        KernelCounts::read(&text).with_context(|| format!("perf said: {text}"))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

impl KernelCounts {
    /// Reads `perf stat -x ;`: a line an event, the number first, the event's name third.
    fn read(text: &str) -> Option<Self> {
        let count = |event: &str| -> Option<u64> {
            let mut lines = text.lines().map(|line| line.split(';').collect::<Vec<_>>());
            let line =
                lines.find(|line| line.get(2).is_some_and(|name| name.starts_with(event)))?;
            line.first()?.parse().ok()
        };
        let [system_calls, yields, wake_ups, switches] = EVENTS.map(count);
        Some(Self {
            system_calls: system_calls?.saturating_sub(yields?),
            yields: yields?,
            wake_ups: wake_ups?,
            switches: switches?,
        })
    }
}

fn entries(directory: &str) -> usize {
    fs::read_dir(directory).map_or(0, |entries| entries.count())
}

/// The events that perf has open.
fn open_events(perf: u32) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{perf}/fd"));
    descriptors.map_or(0, |descriptors| {
        let targets = descriptors
            .flatten()
            .filter_map(|it| fs::read_link(it.path()).ok());
        targets
            .filter(|target| target.to_string_lossy().contains("[perf_event]"))
            .count()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_the_events_names() {
        let text = "# started on Mon\n\n1200;;raw_syscalls:sys_enter;15;100.00;;\n\
                    200;;syscalls:sys_enter_sched_yield;15;100.00;;\n\
                    7;;sched:sched_waking;15;100.00;;\n31;;context-switches;15;100.00;;\n";
        let expected = KernelCounts {
            system_calls: 1000,
            yields: 200,
            wake_ups: 7,
            switches: 31,
        };
        assert_eq!(KernelCounts::read(text), Some(expected));
        let without = text.replace("31;", "<not supported>;");
        assert_eq!(KernelCounts::read(&without), None);
    }
}
