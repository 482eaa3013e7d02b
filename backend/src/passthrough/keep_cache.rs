//! Whether a guest may keep its cached pages of a file that it opens again (`FOPEN_KEEP_CACHE`).
//!
//! By default a guest's kernel drops its cached pages at each open, because the host or another
//! guest may have changed the file. Each change updates the file's ctime, which no program can set.
//! If the ctime is the same as at the last open, the guest's kernel keeps its pages and the
//! mappings of its programs.
//!
//! There are two limits. The ctime has a resolution of a few milliseconds. And a host program that
//! writes through a mapping updates the ctime once, then again only after writeback. So a ctime
//! counts only if it is old enough (`CtimeStability`) and the file system is known to update
//! ctime at the first write through a mapping. The guest may also process two concurrent OPEN
//! replies in either order, so a ctime that was recorded a moment ago does not count yet.

use std::os::fd::BorrowedFd;
use std::time::SystemTime;

use super::fs::{Node, PassthroughFs};
use super::mounts::Mount;
use crate::sys::file;

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
            self.state.ctime_stability.stable_ctime(ctime, now)
        });
        // Only differences are used, so the value may wrap.
        let seconds = u16::try_from(now.as_secs() & u64::from(u16::MAX)).unwrap_or(0);
        self.state
            .inodes
            .note_ctime(node.id, ctime, seconds)
            .is_some_and(|known| known >= self.state.ctime_stability.min_known_secs)
    }
}
