//! Converts the daemon's structures to the client's, which are narrower: values are cut where that
//! is harmless, and refused elsewhere.

use gangplank_driver::DirEntry;
use gangplank_fuse::{Attr, Kstatfs};
use rustix::io::Errno;

use super::call::Sizes;
use crate::abi::rhostfs::{Statfs64, Timeval, UsrDirent, UsrStat, Utimes};

/// Magic number of a FUSE file system (`FUSE_SUPER_MAGIC`, include/uapi/linux/magic.h).
const FUSE_MAGIC: u32 = 0x6573_5546;

/// Bytes of an entry before its name, as its length counts them.
const DIRENT_HEADER: usize = 12;

/// Longest name of an entry, in bytes without the NUL.
const NAME_MAX: usize = 255;

/// A 64-bit inode number folded to 32 bits. A number that fits stays. The result is never zero,
/// which the client takes for no inode.
pub(super) const fn ino(ino: u64) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "both halves count")]
    let folded = (ino ^ ino >> 32) as u32;
    if folded == 0 { u32::MAX } else { folded }
}

/// A file's attributes. `mark` tells it from other files with its inode number, and is zero if
/// unknown. The original client does not read that field.
///
/// # Errors
///
/// EOVERFLOW if the client cannot read a size this large.
pub(super) fn stat(attr: &Attr, mark: u32, sizes: Sizes) -> Result<UsrStat, Errno> {
    if sizes == Sizes::Half && u32::try_from(attr.size).is_err() {
        return Err(Errno::OVERFLOW);
    }
    let mut stat = UsrStat {
        dev: mark,
        ino: ino(attr.ino),
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        pad0: 0,
        rdev: attr.rdev,
        size: 0,
        blksize: attr.blksize,
        blocks: u32::try_from(attr.blocks).unwrap_or(u32::MAX),
        atime: attr.atime.cast_signed().into(),
        mtime: attr.mtime.cast_signed().into(),
        ctime: attr.ctime.cast_signed().into(),
    };
    stat.set_whole_size(attr.size);
    Ok(stat)
}

/// The figures of a file system. The id is zero, because FUSE has none.
pub(super) fn statfs(st: &Kstatfs) -> Statfs64 {
    Statfs64 {
        kind: FUSE_MAGIC,
        bsize: st.bsize,
        blocks: st.blocks.into(),
        bfree: st.bfree.into(),
        bavail: st.bavail.into(),
        files: st.files.into(),
        ffree: st.ffree.into(),
        fsid: [0; 2],
        namelen: st.namelen,
        frsize: st.frsize,
        flags: 0,
        spare: [0; 4],
    }
}

/// A directory entry. `None` if its name is too long. `kind` is its `DT_*`.
pub(super) fn dirent(entry: &DirEntry, cookie: i32, kind: u32) -> Option<UsrDirent> {
    if entry.name.len() > NAME_MAX {
        return None;
    }
    let mut name = [0; NAME_MAX + 1];
    for (to, from) in name.iter_mut().zip(&entry.name) {
        *to = *from;
    }
    let length = (DIRENT_HEADER + entry.name.len()).next_multiple_of(4);
    Some(UsrDirent {
        ino: ino(entry.ino),
        off: cookie,
        reclen: u16::try_from(length).ok()?,
        kind: u8::try_from(kind).unwrap_or_default(),
        name,
        padding: 0,
    })
}

/// Access and modification time as seconds and nanoseconds.
///
/// # Errors
///
/// EINVAL for invalid microseconds.
pub(super) fn times(times: &Utimes) -> Result<[(i64, u32); 2], Errno> {
    let time = |time: &Timeval| -> Result<(i64, u32), Errno> {
        let microseconds = u32::try_from(time.usec)
            .ok()
            .filter(|usec| *usec < 1_000_000);
        let nanoseconds = microseconds.ok_or(Errno::INVAL)? * 1000;
        Ok((i64::from(time.sec), nanoseconds))
    };
    Ok([time(&times.atime)?, time(&times.mtime)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d5_inode_numbers_keep_32_bits_and_are_never_zero() {
        assert_eq!(ino(77), 77);
        assert_eq!(ino(0), u32::MAX);
        assert_eq!(ino(0x5_0000_0005), u32::MAX);
        assert_eq!(ino(0x1_0000_0005), 4);
    }

    #[test]
    fn d5_attributes_are_cut_where_harmless_and_a_large_size_is_refused() {
        let attr = Attr {
            ino: 77,
            size: u32::MAX.into(),
            blocks: 1 << 40,
            atime: (-1_i64).cast_unsigned(),
            mode: 0o020_660,
            rdev: 0x0011_032c,
            ..Attr::default()
        };
        let told = stat(&attr, 0, Sizes::Half).unwrap();
        assert_eq!(
            (told.size, told.blocks, told.atime.get()),
            (u32::MAX, u32::MAX, -1)
        );
        assert_eq!(
            (told.mode, told.rdev, told.pad0),
            (0o020_660, 0x0011_032c, 0)
        );
        let larger = Attr {
            size: 1 << 32,
            ..attr
        };
        assert_eq!(stat(&larger, 0, Sizes::Half), Err(Errno::OVERFLOW));
        let told = stat(&larger, 0, Sizes::Whole).unwrap();
        assert_eq!((told.size, told.pad0, told.whole_size()), (0, 1, 1 << 32));
    }

    fn entry(name: &[u8]) -> DirEntry {
        DirEntry {
            name: name.to_vec(),
            ino: 1_056_357,
            offset: 0,
            kind: 8,
            node: None,
        }
    }

    #[test]
    fn d13_an_entry_is_filled_to_its_end() {
        let told = dirent(&entry(b"hola.txt"), 992_853_236, 8).unwrap();
        assert_eq!(
            (told.ino, told.off, told.reclen, told.kind),
            (1_056_357, 992_853_236, 20, 8)
        );
        assert!(told.name.starts_with(b"hola.txt\0"));
        assert!(told.name.iter().skip(8).all(|byte| *byte == 0));
        assert!(dirent(&entry(&[b'n'; 255]), 1, 8).is_some());
        assert_eq!(dirent(&entry(&[b'n'; 256]), 1, 8), None);
    }

    #[test]
    fn d11_microseconds_are_less_than_a_second() {
        let time = |usec| Utimes {
            atime: Timeval { sec: -3, usec },
            mtime: Timeval { sec: 4, usec: 0 },
        };
        assert_eq!(times(&time(999_999)), Ok([(-3, 999_999_000), (4, 0)]));
        for usec in [-1, 1_000_000, i32::MAX] {
            assert_eq!(times(&time(usec)), Err(Errno::INVAL));
        }
    }
}
