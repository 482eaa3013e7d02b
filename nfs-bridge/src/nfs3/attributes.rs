//! Attributes as NFSv3 has them, and as FUSE has them.

use gangplank_fuse::{Attr, SetattrIn, SetattrValid};
use nfs3_types::nfs3::{
    Nfs3Option, fattr3, ftype3, nfstime3, post_op_attr, sattr3, set_atime, set_mtime, specdata3,
    wcc_attr, wcc_data,
};
use rustix::fs::FileType;

/// Attributes for the client.
#[must_use]
pub(super) fn to_nfs(attr: &Attr, export: u32) -> fattr3 {
    fattr3 {
        type_: kind(attr.mode),
        mode: attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        used: attr.blocks.saturating_mul(512),
        rdev: device_numbers(attr.rdev),
        fsid: export.into(),
        fileid: attr.ino,
        atime: time(attr.atime, attr.atimensec),
        mtime: time(attr.mtime, attr.mtimensec),
        ctime: time(attr.ctime, attr.ctimensec),
    }
}

/// Attributes after an operation, if they are known.
#[must_use]
pub(super) fn post_op(attr: Option<&Attr>, export: u32) -> post_op_attr {
    match attr {
        Some(attr) => Nfs3Option::Some(to_nfs(attr, export)),
        None => Nfs3Option::None,
    }
}

/// Attributes before and after a change, as far as they are known.
#[must_use]
pub(super) fn wcc(before: Option<&Attr>, after: Option<&Attr>, export: u32) -> wcc_data {
    let before = before.map(|attr| wcc_attr {
        size: attr.size,
        mtime: time(attr.mtime, attr.mtimensec),
        ctime: time(attr.ctime, attr.ctimensec),
    });
    wcc_data {
        before: before.map_or(Nfs3Option::None, Nfs3Option::Some),
        after: post_op(after, export),
    }
}

fn kind(mode: u32) -> ftype3 {
    match FileType::from_raw_mode(mode) {
        FileType::Directory => ftype3::NF3DIR,
        FileType::BlockDevice => ftype3::NF3BLK,
        FileType::CharacterDevice => ftype3::NF3CHR,
        FileType::Symlink => ftype3::NF3LNK,
        FileType::Socket => ftype3::NF3SOCK,
        FileType::Fifo => ftype3::NF3FIFO,
        FileType::RegularFile | FileType::Unknown => ftype3::NF3REG,
    }
}

/// The time of change, as a client compares it.
#[must_use]
pub(super) fn time(seconds: u64, nseconds: u32) -> nfstime3 {
    // Times before 1970 and after 2106 do not fit.
    let seconds = u64::try_from(seconds.cast_signed()).unwrap_or(0);
    nfstime3 {
        seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
        nseconds,
    }
}

/// Major and minor number, from the kernel's 32-bit encoding (`new_encode_dev`).
const fn device_numbers(rdev: u32) -> specdata3 {
    specdata3 {
        specdata1: rdev >> 8 & 0xfff,
        specdata2: rdev & 0xff | rdev >> 12 & 0xf_ff00,
    }
}

/// The kernel's 32-bit encoding of a device number; `None` if it does not fit.
#[must_use]
pub(super) const fn device(numbers: &specdata3) -> Option<u32> {
    let (major, minor) = (numbers.specdata1, numbers.specdata2);
    if major > 0xfff || minor > 0xf_ffff {
        return None;
    }
    Some(minor & 0xff | major << 8 | (minor & 0xf_ff00) << 12)
}

/// What a client sets.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Changes {
    /// New permissions.
    pub(super) mode: Option<u32>,
    /// New owner.
    pub(super) uid: Option<u32>,
    /// New group.
    pub(super) gid: Option<u32>,
    /// New size, in bytes.
    pub(super) size: Option<u64>,
    /// New access time.
    pub(super) atime: Time,
    /// New modification time.
    pub(super) mtime: Time,
}

/// A time to set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Time {
    /// It stays.
    #[default]
    Keep,
    /// It becomes the server's now.
    Now,
    /// It becomes this.
    At(nfstime3),
}

fn option<T: nfs3_types::xdr_codec::Pack + nfs3_types::xdr_codec::Unpack>(
    value: Nfs3Option<T>,
) -> Option<T> {
    match value {
        Nfs3Option::Some(value) => Some(value),
        Nfs3Option::None => None,
    }
}

impl From<sattr3> for Changes {
    fn from(attributes: sattr3) -> Self {
        Self {
            mode: option(attributes.mode),
            uid: option(attributes.uid),
            gid: option(attributes.gid),
            size: option(attributes.size),
            atime: match attributes.atime {
                set_atime::DONT_CHANGE => Time::Keep,
                set_atime::SET_TO_SERVER_TIME => Time::Now,
                set_atime::SET_TO_CLIENT_TIME(time) => Time::At(time),
            },
            mtime: match attributes.mtime {
                set_mtime::DONT_CHANGE => Time::Keep,
                set_mtime::SET_TO_SERVER_TIME => Time::Now,
                set_mtime::SET_TO_CLIENT_TIME(time) => Time::At(time),
            },
        }
    }
}

impl Changes {
    /// Whether it changes nothing.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.setattr().valid == 0
    }

    /// As the daemon takes it.
    #[must_use]
    pub(super) fn setattr(&self) -> SetattrIn {
        let mut valid = SetattrValid::empty();
        let mut args = SetattrIn::default();
        if let Some(mode) = self.mode {
            valid |= SetattrValid::MODE;
            args.mode = mode;
        }
        if let Some(uid) = self.uid {
            valid |= SetattrValid::UID;
            args.uid = uid;
        }
        if let Some(gid) = self.gid {
            valid |= SetattrValid::GID;
            args.gid = gid;
        }
        if let Some(size) = self.size {
            valid |= SetattrValid::SIZE;
            args.size = size;
        }
        match self.atime {
            Time::Keep => {}
            Time::Now => valid |= SetattrValid::ATIME | SetattrValid::ATIME_NOW,
            Time::At(time) => {
                valid |= SetattrValid::ATIME;
                (args.atime, args.atimensec) = (time.seconds.into(), time.nseconds);
            }
        }
        match self.mtime {
            Time::Keep => {}
            Time::Now => valid |= SetattrValid::MTIME | SetattrValid::MTIME_NOW,
            Time::At(time) => {
                valid |= SetattrValid::MTIME;
                (args.mtime, args.mtimensec) = (time.seconds.into(), time.nseconds);
            }
        }
        args.valid = valid.bits();
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_both_encodings() {
        for (major, minor) in [(0, 0), (8, 1), (0xfff, 0xf_ffff), (1, 0x12345)] {
            let numbers = specdata3 {
                specdata1: major,
                specdata2: minor,
            };
            assert_eq!(device_numbers(device(&numbers).unwrap()), numbers);
        }
        let too_large = specdata3 {
            specdata1: 0x1000,
            specdata2: 0,
        };
        assert_eq!(device(&too_large), None);
    }

    #[test]
    fn times_beyond_the_protocol_are_its_limits() {
        assert_eq!(time((-1_i64).cast_unsigned(), 5).seconds, 0);
        assert_eq!(time(1 << 40, 5).seconds, u32::MAX);
    }

    #[test]
    fn nothing_changes_unless_the_client_says_so() {
        assert!(Changes::from(sattr3::default()).is_empty());
        let now = Changes {
            mtime: Time::Now,
            ..Changes::default()
        };
        assert!(!now.is_empty());
    }
}
