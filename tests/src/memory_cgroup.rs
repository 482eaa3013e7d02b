//! A control group of few bytes of memory: the kernel kills what is in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// Where control groups of memory are, the file of the limit, and that of the number of kills: of
/// version 1 and of version 2.
const HIERARCHIES: [(&str, &str, &str); 2] = [
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.oom_control",
    ),
    ("/sys/fs/cgroup", "memory.max", "memory.events"),
];

/// The file with the limit of swap beside that of memory, and what to write there.
fn swap_limit(limit: &str, bytes: u64) -> (&'static str, u64) {
    match limit {
        // Of version 1, which limits both together.
        "memory.limit_in_bytes" => ("memory.memsw.limit_in_bytes", bytes),
        _ => ("memory.swap.max", 0),
    }
}

/// A control group; removed when dropped.
#[derive(Debug)]
pub struct MemoryCgroup {
    path: PathBuf,
    kills: &'static str,
}

impl MemoryCgroup {
    /// A group that may have `bytes` of memory. `None` if this machine does not permit to make one.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        HIERARCHIES.into_iter().find_map(|(root, limit, kills)| {
            let name = format!("gangplank-tests-{}", std::process::id());
            let path = Path::new(root).join(name);
            fs::create_dir(&path).ok()?;
            let group = Self { path, kills };
            fs::write(group.path.join(limit), bytes.to_string()).ok()?;
            // Swap would be memory that is not counted. A kernel that does not count swap lacks the
            // file.
            let (swap, bytes) = swap_limit(limit, bytes);
            let _ = fs::write(group.path.join(swap), bytes.to_string());
            group.kills().ok()?;
            Some(group)
        })
    }

    /// Moves a process into the group. What it has is not counted, only what it takes from now on.
    ///
    /// # Errors
    /// The process is gone.
    pub fn add(&self, process: u32) -> Result<()> {
        let list = self.path.join("cgroup.procs");
        Ok(fs::write(list, process.to_string())?)
    }

    /// How many processes the kernel has killed for lack of memory.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn kills(&self) -> Result<u64> {
        let text = fs::read_to_string(self.path.join(self.kills))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.context("no count of kills")?.trim().parse()?)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Not while a killed process still ends.
        for _ in 0..200 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
