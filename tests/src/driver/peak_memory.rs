//! The peaks of memory of a daemon's processes.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::with_descendants;

/// Watches the memory of a daemon's processes. The kernel forgets the peaks of
/// a process that ends, so they are read again and again.
pub(super) struct PeakMemory {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(u64, u64)>>,
}

impl PeakMemory {
    pub(super) fn watch(daemon: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("peak_memory".into())
            .spawn(move || {
                let mut peak = (0, 0);
                while !stopped.load(Ordering::Relaxed) {
                    for pid in with_descendants(daemon) {
                        let kb = |field| status_kb(pid, field).unwrap_or(0);
                        peak = (peak.0.max(kb("VmHWM:")), peak.1.max(kb("VmPeak:")));
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                peak
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// The peaks of resident memory and of address space, of any one process, in KiB.
    pub(super) fn stop(&mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take();
        thread
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        self.stop();
    }
}

fn status_kb(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .with_context(|| format!("no {field} in the status of {pid}"))?;
    let number = line.split_whitespace().next().unwrap_or_default();
    Ok(number.parse()?)
}
