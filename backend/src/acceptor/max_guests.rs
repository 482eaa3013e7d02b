//! How many guests the host's memory and process ids permit: the default of `--max-guests`.
//!
//! A guest chooses how many of its threads it keeps busy, so what it may have at most counts: else
//! some guests could take the tasks that another one's next worker needs.

use std::fs;
use std::path::{Component, Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use crate::device::Options;

/// Memory of one connected guest in bytes: keeper and worker with idle threads use about 2 MiB, and
/// a guest that uses the share remembers inodes.
const MEMORY_PER_GUEST: u64 = 4 << 20;

/// Tasks of one guest beside its rings' threads and those that `--max-threads` limits.
///
/// - Four that it always has: the keeper, and the worker's first, `guest_N` and `vhost_user`.
/// - Five that it may have: `migration`, `wake_blocked`, `events`, `fd_cache` and `trace`.
/// - Three more keepers: that of a session which is kept without a connection, of which there are
///   as many as guests, and at a reload those of the next program for both.
const TASKS_PER_GUEST: u64 = 4 + 5 + 3;

/// Tasks of all else: supervisor, acceptor, reporters, what closes descriptors, and what a reload
/// starts.
const OTHER_TASKS: u64 = 64;

/// Where the control groups are mounted: version 2, or a directory of each controller of version 1.
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
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group_limit = |controller| limit_of_groups(&groups, Path::new(CGROUPS), controller);
        Self {
            memory: mem_total.into_iter().chain(group_limit("memory")).min(),
            tasks: [pid_max, threads_max, of_user]
                .into_iter()
                .flatten()
                .chain(group_limit("pids"))
                .min(),
        }
    }

    /// The number of guests with such devices; at least one.
    #[must_use]
    pub fn max_guests(self, device: &Options) -> usize {
        let by_memory = self.memory.map(|bytes| bytes / MEMORY_PER_GUEST);
        let max_threads = u64::try_from(device.max_threads).unwrap_or(u64::MAX);
        let per_guest = max_threads.saturating_add(device.rings() + TASKS_PER_GUEST);
        let by_tasks = self
            .tasks
            .map(|tasks| tasks.saturating_sub(OTHER_TASKS) / per_guest);
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

/// The smallest limit of the process's control group, and of the groups around it, of what
/// `controller` limits. `groups` is the process's `/proc/self/cgroup` (cgroups(7)).
fn limit_of_groups(groups: &str, mounted_at: &Path, controller: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (root, of_memory) = match controllers.split(',').any(|one| one == controller) {
            true => (mounted_at.join(controller), "memory.limit_in_bytes"),
            false if controllers.is_empty() => (mounted_at.to_owned(), "memory.max"),
            false => return None,
        };
        let file = match controller {
            "memory" => of_memory,
            _ => "pids.max",
        };
        let inside = |part: &Component<'_>| matches!(part, Component::Normal(_));
        let path: PathBuf = Path::new(path).components().filter(inside).collect();
        let around = path.ancestors().map(|group| root.join(group).join(file));
        around.filter_map(|file| number_in(&file)).min()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcer_of_memory_and_tasks_decides_and_one_guest_is_always_served() {
        let device = Options::default();
        assert_eq!((device.rings(), device.max_threads), (9, 64));
        let guests = |memory, tasks| HostLimits { memory, tasks }.max_guests(&device);
        assert_eq!(guests(Some(1 << 30), Some(1 << 20)), 256);
        // 85 tasks for each guest.
        assert_eq!(guests(Some(1 << 40), Some(64 + 85 * 11 - 1)), 10);
        assert_eq!(guests(Some(1 << 40), Some(64 + 85 * 11)), 11);
        assert_eq!(guests(Some(1 << 20), Some(3)), 1);
        assert_eq!(guests(None, None), usize::MAX);
    }

    /// The number in the comments of the units in `configs/systemd/`.
    #[test]
    fn the_units_permit_as_many_guests_as_they_say() {
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/systemd");
        let names = ["gangplankd@", "gangplankd-activated@", "gangplankd-shares"];
        for name in names.map(|name| format!("{name}.service")) {
            let unit = fs::read_to_string(units.join(&name)).unwrap();
            let tasks = unit.lines().find_map(|line| line.strip_prefix("TasksMax="));
            let limits = HostLimits {
                memory: None,
                tasks: tasks.and_then(|tasks| tasks.parse().ok()),
            };
            let guests = limits.max_guests(&Options::default());
            let said = format!("# so {guests} guests by default.");
            assert!(unit.contains(&said), "{name} does not say {said:?}");
        }
    }

    #[test]
    fn the_smallest_limit_of_the_groups_counts_in_both_versions() {
        let mounted = tempfile::tempdir().unwrap();
        let root = mounted.path();
        let write = |file: &str, text: &str| {
            let file: PathBuf = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        write("memory.max", "7\n");
        write("slice/memory.max", "5000\n");
        write("slice/unit/memory.max", "max\n");
        write("slice/unit/pids.max", "600\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/pod/memory.limit_in_bytes", "4000\n");
        write("pids/pod/pids.max", "max\n");
        write("pids/pids.max", "500\n");
        let two = "0::/slice/unit\n";
        assert_eq!(limit_of_groups(two, root, "memory"), Some(7));
        assert_eq!(limit_of_groups(two, root, "pids"), Some(600));
        let one = "12:pids:/pod/a\n5:cpu,memory:/pod/a\n4:cpu:/\n";
        assert_eq!(limit_of_groups(one, root, "memory"), Some(4000));
        assert_eq!(limit_of_groups(one, root, "pids"), Some(500));
        let both = format!("{one}{two}");
        assert_eq!(limit_of_groups(&both, root, "pids"), Some(500));
        assert_eq!(limit_of_groups("", root, "pids"), None);
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
