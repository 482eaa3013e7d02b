//! Whether what a guest has cached of a file is still right when it opens the file again.
//!
//! By default a guest's kernel drops what it has cached of a file at each open, since the file may have been changed on the host
//! or by another guest. Every change shows in the file's change time, which nobody can set. So a file whose change time is that
//! of the last open need not be read again, and neither does the guest's kernel have to give up what programs have mapped.
//!
//! Two things are in the way of that. A change time is exact to some milliseconds only, and a program of the host that writes
//! through a mapping moves it once and then again only after the kernel has written the pages back. Both are met by looking at
//! files alone that were last changed a good while ago, on file systems known to note the first write through a mapping. And
//! two opens at once are answered in an order that the guest need not keep, so that the second is not told to rely on what the
//! first has made the guest drop: what was noted a moment ago does not count yet.

use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use super::fs::{Node, PassthroughFs};
use super::mounts::Mount;
use crate::sys::file;

/// For how long a file must not have changed, and a change time must have been known, to be relied on.
#[derive(Debug, Clone, Copy)]
pub(super) struct CtimeStability {
    /// Longer than the kernel lets a page be dirty (`vm.dirty_expire_centisecs` and `vm.dirty_writeback_centisecs`, 35 seconds).
    pub(super) min_age: Duration,
    /// Longer than an answer is on its way, in whole seconds.
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
    /// A change time (seconds, nanoseconds) in nanoseconds since the epoch, if it is long enough before `now`; else 0.
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
    /// Whether the guest, which opens `file` in `place`, may go on using what it has cached since it last did.
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
        // Differences count, and so it may wrap.
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
