//! The process's user and groups, and the ids that its user namespace maps.

use std::io;

use super::capabilities;
use super::error::Error;

/// The user and group ids that the process's user namespace maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MappedIds {
    /// Whether it is the host's initial namespace, which maps all ids.
    pub(super) initial: bool,
    users: u64,
    groups: u64,
}

impl MappedIds {
    /// Whether the process has other users and groups to change to.
    pub(super) fn more_than_one(self) -> bool {
        self.users > 1 && self.groups > 1
    }
}

/// Whether the effective user is root, which is virtiofsd's criterion.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Reads the mapped ids. Must be called while `/proc` is in reach.
pub(super) fn mapped_ids() -> MappedIds {
    // A kernel without user namespaces has neither file, and maps all ids.
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

/// Number of all ids: 2^32 without the reserved last one. Only the initial namespace maps so many.
const ALL_IDS: u64 = 0xffff_ffff;

/// Number of ids in the text of a map: lines of `inside outside count` (user_namespaces(7)).
fn count(map: &str) -> u64 {
    map.lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

/// Drops the operator's supplementary groups, because every guest's caller would have their
/// permissions.
///
/// A process that may not set its groups keeps them. It cannot act as other users either.
pub(super) fn drop_supplementary_groups() -> Result<(), Error> {
    let denied = std::fs::read_to_string("/proc/self/setgroups")
        .is_ok_and(|setting| setting.trim() == "deny");
    if denied || !capabilities::can_set_groups()? {
        return Ok(());
    }
    // The process is single-threaded, so the thread's groups are the process's.
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
