//! Whether a guest may keep its cached pages of a file that it opens again (`FOPEN_KEEP_CACHE`).
//!
//! By default a guest's kernel drops its cached pages at each open, because the host or another
//! guest may have changed the file. Each change updates the file's ctime, which no program can set.
//! If the ctime is the same as at the last open, the guest's kernel keeps its pages and the
//! mappings of its programs.
//!
//! There are two limits. The ctime has a resolution of a few milliseconds. And a host program that
//! writes through a mapping updates the ctime once, then again only after writeback. So a ctime
//! counts only if it is old enough ([`CtimeStability`]) and the file system is known to update
//! ctime at the first write through a mapping. The guest may also process two concurrent OPEN
//! replies in either order, so a ctime that was recorded a moment ago does not count yet.

use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use super::fs::{Node, PassthroughFs};
use super::mounts::Mount;
use crate::sys::file;

/// How old a ctime must be, and for how long it must have been recorded, to be relied on.
#[derive(Debug, Clone, Copy)]
pub(super) struct CtimeStability {
    /// Longer than the kernel keeps a page dirty: `vm.dirty_expire_centisecs` plus
    /// `vm.dirty_writeback_centisecs`, 35 seconds by default.
    pub(super) min_age: Duration,
    /// Longer than a reply takes to reach the guest, in whole seconds.
    pub(super) min_known_secs: u16,
}

impl Default for CtimeStability {
    fn default() -> Self {
        Self {
            min_age: Duration::from_mins(2),
            min_known_secs: 2,
        }
    }
}

impl CtimeStability {
    /// The ctime (seconds, nanoseconds) in nanoseconds since the epoch if it is old enough at
    /// `now`, else 0.
    fn stable_ctime(self, (seconds, nanoseconds): (i64, u32), now: Duration) -> i64 {
        let Ok(seconds) = u64::try_from(seconds) else {
            return 0;
        };
        let ctime =
            Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanoseconds.into()));
        match now.checked_sub(ctime) {
            Some(age) if age >= self.min_age => i64::try_from(ctime.as_nanos()).unwrap_or(0),
            _ => 0,
        }
    }
}

impl PassthroughFs {
    /// Whether the guest, which opens `file` on `mount`, may keep its cached pages.
    pub(super) fn cache_is_valid(&self, node: &Node, mount: &Mount, file: BorrowedFd<'_>) -> bool {
        if !mount.ctime_is_reliable() {
            return false;
        }
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let ctime = file::stat_with(file, libc::STATX_CTIME, 0).map_or(0, |stat| {
            let ctime = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec);
            self.ctime_stability.stable_ctime(ctime, now)
        });
        // Only differences are used, so the value may wrap.
        let seconds = u16::try_from(now.as_secs() & u64::from(u16::MAX)).unwrap_or(0);
        self.inodes
            .note_ctime(node.id, ctime, seconds)
            .is_some_and(|known| known >= self.ctime_stability.min_known_secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_not_changed_for_a_while_has_a_change_time_to_rely_on() {
        let (ctime_stability, now) = (CtimeStability::default(), Duration::from_secs(10_000));
        let of = |sec, nsec| ctime_stability.stable_ctime((sec, nsec), now);
        assert_eq!(of(9_880, 0), 9_880_000_000_000);
        assert_eq!(of(9_879, 999_999_999), 9_879_999_999_999);
        for (sec, nsec) in [(9_880, 1), (10_000, 0), (20_000, 0), (i64::MAX, 0), (-1, 0)] {
            assert_eq!(of(sec, nsec), 0, "{sec}.{nsec}");
        }
    }
}
