//! How many guests the host's memory and process ids permit: the default of `--max-guests`.

use std::fs;
use std::path::{Component, Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// Memory of one connected guest in bytes: keeper and worker with idle threads use about 2 MiB, and
/// a guest that uses the share remembers inodes.
const MEMORY_PER_GUEST: u64 = 4 << 20;

/// Tasks of one guest besides its rings' threads: keeper, worker, connection, protocol, and some
/// for requests that wait.
const TASKS_PER_GUEST: u64 = 8;

/// Where version 2 of the control groups is mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What bounds the number of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// Bytes of memory; `None` if unknown.
    memory: Option<u64>,
    /// Processes and threads; `None` if unknown.
    tasks: Option<u64>,
}

impl HostLimits {
    /// The smallest limits of the host, the control group and the user. Must be called while
    /// `/proc` and `/sys` are in reach.
    #[must_use]
    pub fn read() -> Self {
        let mem_total = fs::read_to_string("/proc/meminfo").ok();
        let mem_total = mem_total.as_deref().and_then(mem_total_bytes);
        let pid_max = number_in(Path::new("/proc/sys/kernel/pid_max"));
        let threads_max = number_in(Path::new("/proc/sys/kernel/threads-max"));
        let of_user = getrlimit(Resource::Nproc).current;
        let groups = own_cgroups();
        let group_limit = |file: &str| -> Option<u64> {
            let limits = groups.iter().filter_map(|dir| number_in(&dir.join(file)));
            limits.min()
        };
        Self {
            memory: mem_total.into_iter().chain(group_limit("memory.max")).min(),
            tasks: [pid_max, threads_max, of_user]
                .into_iter()
                .flatten()
                .chain(group_limit("pids.max"))
                .min(),
        }
    }

    /// The number of guests whose devices have `rings` rings; at least one.
    #[must_use]
    pub fn max_guests(self, rings: u64) -> usize {
        let by_memory = self.memory.map(|bytes| bytes / MEMORY_PER_GUEST);
        let by_tasks = self.tasks.map(|tasks| tasks / (TASKS_PER_GUEST + rings));
        let guests = by_memory.into_iter().chain(by_tasks).min();
        usize::try_from(guests.unwrap_or(u64::MAX).max(1)).unwrap_or(usize::MAX)
    }
}

fn mem_total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The number in a file; `None` for `max` and a file that cannot be read.
fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The directories of the process's control group and of the groups around it.
fn own_cgroups() -> Vec<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let inside = |part: &Component<'_>| matches!(part, Component::Normal(_));
    let path: PathBuf = Path::new(path).components().filter(inside).collect();
    let dirs = path.ancestors().map(|path| Path::new(CGROUPS).join(path));
    dirs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcer_of_memory_and_tasks_decides_and_one_guest_is_always_served() {
        let limits = |memory, tasks| HostLimits { memory, tasks };
        assert_eq!(limits(Some(1 << 30), Some(1 << 20)).max_guests(9), 256);
        assert_eq!(limits(Some(1 << 40), Some(1000)).max_guests(9), 58);
        assert_eq!(limits(Some(1 << 20), Some(3)).max_guests(9), 1);
        assert_eq!(limits(None, Some(170)).max_guests(9), 10);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let meminfo = "MemTotal:       24600000 kB\nMemFree:        1 kB\n";
        assert_eq!(mem_total_bytes(meminfo), Some(24_600_000 * 1024));
        assert_eq!(mem_total_bytes("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn this_host_has_limits() {
        let limits = HostLimits::read();
        assert!(limits.memory.is_some() && limits.tasks.is_some());
    }
}
