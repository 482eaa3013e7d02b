//! What a daemon tells, in the structures that a client takes: narrower than the daemon's, and so cut where that does no harm
//! and refused where it would.

use gangplank_frontend::driver::Entry;
use gangplank_fuse::{Attr, Kstatfs};
use rustix::io::Errno;

use crate::abi::rhostfs::{Statfs64, Timeval, UsrDirent, UsrStat, Utimes};

/// Magic number of a FUSE file system (`FUSE_SUPER_MAGIC`, include/uapi/linux/magic.h).
const FUSE_MAGIC: u32 = 0x6573_5546;

/// Bytes of an entry before its name, as its length counts them.
const ENTRY_HEAD: usize = 12;

/// Longest name of an entry, in bytes without the NUL.
const LONGEST_NAME: usize = 255;

/// An inode number of 64 bits in 32: itself where it fits, and never zero, which the client takes for none.
pub(super) const fn ino(ino: u64) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "both halves count")]
    let folded = (ino ^ ino >> 32) as u32;
    if folded == 0 { u32::MAX } else { folded }
}

/// A file's attributes.
///
/// # Errors
/// EOVERFLOW: its size does not fit.
pub(super) fn stat(attr: &Attr) -> Result<UsrStat, Errno> {
    Ok(UsrStat {
        dev: 0,
        ino: ino(attr.ino),
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        pad0: 0,
        rdev: attr.rdev,
        size: u32::try_from(attr.size).map_err(|_| Errno::OVERFLOW)?,
        blksize: attr.blksize,
        blocks: u32::try_from(attr.blocks).unwrap_or(u32::MAX),
        atime: attr.atime.cast_signed().into(),
        mtime: attr.mtime.cast_signed().into(),
        ctime: attr.ctime.cast_signed().into(),
    })
}

/// A file system's figures. Its id is zero, as FUSE has none.
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

/// A directory's entry; none if its name is too long for it. `kind` is its `DT_*`.
pub(super) fn dirent(entry: &Entry, cookie: i32, kind: u32) -> Option<UsrDirent> {
    if entry.name.len() > LONGEST_NAME {
        return None;
    }
    let mut name = [0; LONGEST_NAME + 1];
    for (to, from) in name.iter_mut().zip(&entry.name) {
        *to = *from;
    }
    let length = (ENTRY_HEAD + entry.name.len()).next_multiple_of(4);
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
/// EINVAL for microseconds that are none.
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
