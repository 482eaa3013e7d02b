//! Control groups of few bytes of memory, and of little time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// One version of control groups, and its files.
struct Hierarchy {
    /// The directory of groups of memory.
    memory: &'static str,
    /// The limit of memory, in bytes.
    memory_limit: &'static str,
    /// The limit of swap, and whether it includes that of memory; else no swap is to be used. Swap
    /// would be memory that is not counted.
    swap_limit: (&'static str, bool),
    /// How many processes were killed for lack of memory.
    kills: &'static str,
    /// The directory of groups of processors.
    cpu: &'static str,
}

const V1: Hierarchy = Hierarchy {
    memory: "/sys/fs/cgroup/memory",
    memory_limit: "memory.limit_in_bytes",
    swap_limit: ("memory.memsw.limit_in_bytes", true),
    kills: "memory.oom_control",
    cpu: "/sys/fs/cgroup/cpu",
};

const V2: Hierarchy = Hierarchy {
    memory: "/sys/fs/cgroup",
    memory_limit: "memory.max",
    swap_limit: ("memory.swap.max", false),
    kills: "memory.events",
    cpu: "/sys/fs/cgroup",
};

/// Shell text for a directory of the second version: permits less and less memory, until the kernel
/// has killed a process of the group, and then what it permitted before. Prints how many it has
/// killed.
///
/// A file in memory first makes the group larger: with a limit below 1,000 pages, the kernel does
/// not look at `oom_score_adj` (`oom_badness`, mm/oom_kill.c).
pub const SHORTAGE: &str = "[ -d /dev/shm ] && file=/dev/shm/shortage || file=/tmp/shortage; \
    sh -c \"echo \\$\\$ >cgroup.procs && dd if=/dev/zero of=$file bs=1M count=32 2>/dev/null\" && \
    before=$(cat memory.max) && most=$(cat memory.current) && \
    for i in $(seq 400); do \
        most=$((most - 65536)); [ $most -gt 0 ] || most=0; echo $most >memory.max; \
        grep -q '^oom_kill [1-9]' memory.events && break; \
    done; echo $before >memory.max; rm $file; sed -n 's/^oom_kill //p' memory.events";

/// Microseconds in which a group's processes have their share of one processor.
const PERIOD_US: u32 = 100_000;

/// A control group; removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    /// The group in each of its hierarchies; that of memory comes first.
    paths: Vec<PathBuf>,
    kills: &'static str,
}

impl Cgroup {
    /// A group that may have `bytes` of memory. `None` if this machine does not permit to make one.
    #[must_use]
    pub fn of_memory(bytes: u64) -> Option<Self> {
        [V1, V2].iter().find_map(|hierarchy| {
            let group = Self {
                paths: vec![new_directory(hierarchy.memory)?],
                kills: hierarchy.kills,
            };
            group.set(0, hierarchy.memory_limit, &bytes.to_string())?;
            let (swap_limit, includes_memory) = hierarchy.swap_limit;
            let swap = if includes_memory { bytes } else { 0 };
            // A kernel that does not count swap lacks the file.
            let _ = group.set(0, swap_limit, &swap.to_string());
            group.kills().ok()?;
            Some(group)
        })
    }

    /// The same that also has `percent` of one processor.
    #[must_use]
    pub fn of_container(bytes: u64, percent: u32) -> Option<Self> {
        let mut group = Self::of_memory(bytes)?;
        let quota = PERIOD_US / 100 * percent;
        if group.kills == V2.kills {
            group.set(0, "cpu.max", &format!("{quota} {PERIOD_US}"))?;
        } else {
            group.paths.push(new_directory(V1.cpu)?);
            group.set(1, "cpu.cfs_period_us", &PERIOD_US.to_string())?;
            group.set(1, "cpu.cfs_quota_us", &quota.to_string())?;
        }
        Some(group)
    }

    fn set(&self, hierarchy: usize, file: &str, value: &str) -> Option<()> {
        fs::write(self.paths.get(hierarchy)?.join(file), value).ok()
    }

    /// The files to which a process that enters the group writes its number.
    pub fn entrances(&self) -> impl Iterator<Item = PathBuf> {
        self.paths.iter().map(|path| path.join("cgroup.procs"))
    }

    /// Moves a process into the group. What it has is not counted, only what it takes from now on.
    ///
    /// # Errors
    /// The process is gone.
    pub fn add(&self, process: u32) -> Result<()> {
        self.entrances()
            .try_for_each(|list| Ok(fs::write(list, process.to_string())?))
    }

    /// How many processes the kernel has killed for lack of memory.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn kills(&self) -> Result<u64> {
        let memory = self.paths.first().context("no group of memory")?;
        let text = fs::read_to_string(memory.join(self.kills))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.context("no count of kills")?.trim().parse()?)
    }
}

/// Makes a group of this process in a hierarchy.
fn new_directory(root: &str) -> Option<PathBuf> {
    // Tests of one program may have groups at the same time.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("gangplank-tests-{}-{number}", std::process::id());
    let path = Path::new(root).join(name);
    fs::create_dir(&path).ok()?;
    Some(path)
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Not while a killed process still ends.
        for _ in 0..200 {
            self.paths.retain(|path| fs::remove_dir(path).is_err());
            if self.paths.is_empty() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
