//! Who the process is: root or not, which users its user namespace knows, which groups it is in.

use std::io;

use super::{Error, capabilities};

/// The users and groups that exist in the process's user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MappedIds {
    /// It is the host's own, with all users.
    pub(super) initial: bool,
    users: u64,
    groups: u64,
}

impl MappedIds {
    /// There is somebody else to become.
    pub(super) fn more_than_one(self) -> bool {
        self.users > 1 && self.groups > 1
    }
}

/// Whether the effective user is root, as virtiofsd decides it.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The users and groups known here. Must be asked while /proc is still in reach.
pub(super) fn mapped_ids() -> MappedIds {
    // A kernel without user namespaces has no such files, and all users.
    let users = std::fs::read_to_string("/proc/self/uid_map").ok();
    let groups = std::fs::read_to_string("/proc/self/gid_map").ok();
    parse_maps(users.as_deref(), groups.as_deref())
}

fn parse_maps(users: Option<&str>, groups: Option<&str>) -> MappedIds {
    let users = users.map_or(ALL_IDS, count);
    let groups = groups.map_or(ALL_IDS, count);
    MappedIds {
        initial: users == ALL_IDS && groups == ALL_IDS,
        users,
        groups,
    }
}

/// All numbers but the reserved last one: only the initial namespace maps that many.
const ALL_IDS: u64 = 0xffff_ffff;

/// Numbers mapped by the text of a map: lines of `inside outside count` (user_namespaces(7)).
fn count(map: &str) -> u64 {
    map.lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

/// Leaves the operator's other groups, for they would lend their rights to every guest's caller.
///
/// Not where the process could not take on other users anyway: an ordinary user may not, and keeps
/// them.
pub(super) fn drop_supplementary_groups() -> Result<(), Error> {
    let denied = std::fs::read_to_string("/proc/self/setgroups")
        .is_ok_and(|setting| setting.trim() == "deny");
    if denied || !capabilities::can_set_groups()? {
        return Ok(());
    }
    // There is a single thread yet, so the thread's groups are the process's.
    rustix::thread::set_thread_groups(&[]).map_err(|error| Error::Groups(io::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_tell_how_many_users_there_are() {
        let table = [
            ("         0          0 4294967295\n", true, true),
            ("      1000       1000          1\n", false, false),
            ("0 1000 1\n1 100000 65536\n", false, true),
            ("", false, false),
        ];
        for (map, initial, more_than_one) in table {
            let ids = parse_maps(Some(map), Some(map));
            assert_eq!(ids.initial, initial, "{map}");
            assert_eq!(ids.more_than_one(), more_than_one, "{map}");
        }
        assert!(parse_maps(None, None).initial);
    }
}
