//! Finds what has changed while changes were lost.

use std::os::fd::OwnedFd;

use gangplank_events::Kind;
use rustix::fs::{Dir, FileType, StatxTimestamp};

use crate::wake::Waker;

/// How far back files are looked at: changes come later than their times say.
const SLACK_SECS: i64 = 2;

/// A time of the host, in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(i64, u32);

impl Time {
    /// The time of an attribute.
    #[must_use]
    pub const fn of(stamp: &StatxTimestamp) -> Self {
        Self(stamp.tv_sec, stamp.tv_nsec)
    }

    const fn earlier(self) -> Self {
        Self(self.0 - SLACK_SECS, self.1)
    }
}

/// Wakes the watchers of each file and directory whose attributes have changed since then. A name
/// that is gone shows only in its directory.
pub fn rescan(waker: &mut Waker<'_>, root: &OwnedFd, since: Time) {
    let since = since.earlier();
    let mut directories = vec![b".".to_vec()];
    while let Some(path) = directories.pop() {
        // What cannot be listed cannot be watched.
        let Ok(listed) = waker.open_directory(root, &path) else {
            continue;
        };
        let Ok(entries) = Dir::read_from(&listed) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let mut below = match path.as_slice() {
                b"." => Vec::new(),
                path => [path, b"/"].concat(),
            };
            below.extend(name);
            let Some(found) = waker.look(&below) else {
                continue;
            };
            let is_directory = found.file_type == FileType::Directory;
            if found.changed >= since {
                let kind = match is_directory {
                    true => Kind::Attributes,
                    false => Kind::Modified,
                };
                // It may be gone by now.
                let _ = waker.wake(kind, &below, is_directory);
            }
            if is_directory {
                directories.push(below);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ordered_by_seconds_first() {
        assert!(Time(1, 5) < Time(2, 0));
        assert!(Time(2, 1) > Time(2, 0));
        assert_eq!(Time(10, 7).earlier(), Time(8, 7));
    }
}
