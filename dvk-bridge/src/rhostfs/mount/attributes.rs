//! Converts rhostfs attributes and times to the kernel's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use super::nodes::S_IFMT;
use crate::abi::rhostfs::{Timeval, UsrStat};

/// The attributes `stat` of the node `node`.
pub(crate) fn file_attr(node: u64, stat: &UsrStat) -> FileAttr {
    FileAttr {
        ino: INodeNo(node),
        size: stat.whole_size(),
        blocks: u64::from(stat.blocks),
        atime: time(stat.atime.get()),
        mtime: time(stat.mtime.get()),
        ctime: time(stat.ctime.get()),
        crtime: UNIX_EPOCH,
        kind: kind_of_mode(stat.mode),
        // The mask leaves twelve bits.
        perm: u16::try_from(stat.mode & 0o7777).unwrap_or(0),
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        blksize: match stat.blksize {
            512..=0x10_0000 => stat.blksize,
            _ => 4096,
        },
        flags: 0,
    }
}

/// The kind of file of a mode. An unknown kind becomes a regular file.
pub(crate) fn kind_of_mode(mode: u32) -> FileType {
    // The kind bits of a mode, shifted by twelve, are a directory entry's type.
    kind_of_entry(u8::try_from((mode & S_IFMT) >> 12).unwrap_or(0)).unwrap_or(FileType::RegularFile)
}

/// The kind of file of a directory entry. `None` if the entry does not tell.
pub(crate) fn kind_of_entry(kind: u8) -> Option<FileType> {
    Some(match kind {
        1 => FileType::NamedPipe,
        2 => FileType::CharDevice,
        4 => FileType::Directory,
        6 => FileType::BlockDevice,
        8 => FileType::RegularFile,
        10 => FileType::Symlink,
        12 => FileType::Socket,
        _ => return None,
    })
}

/// A time to set, in the protocol's 32-bit seconds. A time out of range is clamped, as Linux clamps
/// it for file systems with short times.
pub(crate) fn timeval(time: TimeOrNow, now: SystemTime) -> Timeval {
    let time = match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => now,
    };
    let (seconds, micros) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (
            i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            after.subsec_micros(),
        ),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_micros() {
                0 => (whole.saturating_neg(), 0),
                micros => (whole.saturating_neg().saturating_sub(1), 1_000_000 - micros),
            }
        }
    };
    let cut = seconds.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
    Timeval {
        // The seconds are clamped to 32 bits, and microseconds are below a million.
        sec: i32::try_from(cut).unwrap_or(i32::MAX),
        usec: i32::try_from(micros).unwrap_or(0),
    }
}

/// A time that keeps its value, from the seconds that the server reported.
pub(crate) fn timeval_of_seconds(seconds: i64) -> Timeval {
    timeval(TimeOrNow::SpecificTime(time(seconds)), UNIX_EPOCH)
}

/// Seconds since 1970 as a time. The epoch if `SystemTime` cannot represent them.
fn time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(time: SystemTime) -> (i32, i32) {
        let Timeval { sec, usec } = timeval(TimeOrNow::SpecificTime(time), UNIX_EPOCH);
        (sec, usec)
    }

    #[test]
    fn times_are_sent_with_microseconds() {
        assert_eq!(set(UNIX_EPOCH + Duration::new(5, 1_999)), (5, 1));
        assert_eq!(set(UNIX_EPOCH - Duration::from_millis(250)), (-1, 750_000));
        assert_eq!(set(UNIX_EPOCH - Duration::from_secs(3)), (-3, 0));
    }

    #[test]
    fn times_beyond_the_protocols_range_are_clamped() {
        assert_eq!(set(UNIX_EPOCH + Duration::from_secs(1 << 40)).0, i32::MAX);
        assert_eq!(set(UNIX_EPOCH - Duration::from_secs(1 << 40)).0, i32::MIN);
    }

    #[test]
    fn any_number_of_seconds_is_a_time() {
        for seconds in [i64::MIN, -1, 0, 1, i64::MAX] {
            let stat = UsrStat {
                mtime: seconds.into(),
                ..UsrStat::default()
            };
            let _ = file_attr(2, &stat);
        }
        assert_eq!(time(-5), UNIX_EPOCH - Duration::from_secs(5));
    }

    #[test]
    fn a_mode_is_split_into_kind_and_permissions() {
        let stat = UsrStat {
            mode: 0o102_755,
            size: u32::MAX,
            blksize: 0,
            ..UsrStat::default()
        };
        let attr = file_attr(9, &stat);
        assert_eq!(
            (attr.kind, attr.perm, attr.size, attr.blksize),
            (FileType::RegularFile, 0o2755, 4_294_967_295, 4096)
        );
        assert_eq!(kind_of_mode(0o120_777), FileType::Symlink);
        assert_eq!(kind_of_entry(0), None);
    }
}
