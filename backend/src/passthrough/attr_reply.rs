//! Converting the host's attributes to those of FUSE replies.

use std::io;

use gangplank_fuse::{Attr, AttrOut, EntryOut, InitFlags, NodeId, StatxOut, SxTime};

use super::file_type::FileType;
use super::fs::PassthroughFs;
use super::mounts::MountIndex;
use crate::session::file_system::{GuestGid, GuestUid};
use crate::sys::file::{self, Statx, StatxTimestamp};
use crate::sys::ids::{HostGid, HostUid};

impl PassthroughFs {
    /// The reply to a lookup that found an inode.
    pub(super) fn entry(
        &self,
        id: NodeId,
        parent: MountIndex,
        mount: MountIndex,
        stat: &Statx,
    ) -> EntryOut {
        let mut attr = self.attr(stat, mount);
        if mount != parent
            && self.state.negotiated.has(InitFlags::SUBMOUNTS)
            && FileType::from_mode(attr.mode) == FileType::Directory
        {
            attr.flags |= gangplank_fuse::AttrFlags::SUBMOUNT.bits();
        }
        let (seconds, nanoseconds) = self.share.timeouts.positive;
        EntryOut {
            nodeid: id.get(),
            // Node ids are never reused, so the generation stays 0.
            generation: 0,
            entry_valid: seconds,
            attr_valid: seconds,
            entry_valid_nsec: nanoseconds,
            attr_valid_nsec: nanoseconds,
            attr,
        }
    }

    /// The reply to a lookup that found nothing.
    pub(super) fn negative_entry(&self) -> io::Result<EntryOut> {
        let (seconds, nanoseconds) = self
            .share
            .timeouts
            .negative
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        Ok(EntryOut {
            entry_valid: seconds,
            entry_valid_nsec: nanoseconds,
            ..EntryOut::default()
        })
    }

    /// The attribute reply for a node.
    pub(super) fn attr_out(&self, id: NodeId, stat: &Statx) -> AttrOut {
        self.record_known_size(id, stat);
        let mount = self.share.mounts.find(stat, MountIndex::ROOT);
        AttrOut {
            attr_valid: self.share.timeouts.positive.0,
            attr_valid_nsec: self.share.timeouts.positive.1,
            dummy: 0,
            attr: self.attr(stat, mount.unwrap_or(MountIndex::ROOT)),
        }
    }

    /// Records that the guest receives this size.
    fn record_known_size(&self, id: NodeId, stat: &Statx) {
        if FileType::of(stat) == FileType::Regular {
            self.state
                .inodes
                .with_known_size(id, |known| known.raise(stat.stx_size));
        }
    }

    /// The inode number that the guest sees.
    pub(super) fn guest_ino(&self, ino: u64, mount: MountIndex) -> u64 {
        if self.state.negotiated.has(InitFlags::SUBMOUNTS) {
            return ino;
        }
        self.state.inode_numbers.guest_ino(mount, ino)
    }

    /// The owner and group that the guest sees.
    fn guest_owner(&self, stat: &Statx) -> (GuestUid, GuestGid) {
        let id_map = &self.share.options.id_map;
        (
            id_map.guest_uid(HostUid::new(stat.stx_uid)),
            id_map.guest_gid(HostGid::new(stat.stx_gid)),
        )
    }

    fn attr(&self, stat: &Statx, mount: MountIndex) -> Attr {
        let (uid, gid) = self.guest_owner(stat);
        let (atime, atimensec) = time(&stat.stx_atime);
        let (mtime, mtimensec) = time(&stat.stx_mtime);
        let (ctime, ctimensec) = time(&stat.stx_ctime);
        Attr {
            ino: self.guest_ino(stat.stx_ino, mount),
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime,
            mtime,
            ctime,
            atimensec,
            mtimensec,
            ctimensec,
            mode: u32::from(stat.stx_mode),
            nlink: stat.stx_nlink,
            uid: uid.get(),
            gid: gid.get(),
            rdev: encode_dev(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            flags: 0,
        }
    }

    /// The STATX reply for a node.
    pub(super) fn statx_out(&self, id: NodeId, stat: &Statx) -> StatxOut {
        if stat.stx_mask & libc::STATX_SIZE != 0 {
            self.record_known_size(id, stat);
        }
        StatxOut {
            attr_valid: self.share.timeouts.positive.0,
            attr_valid_nsec: self.share.timeouts.positive.1,
            stat: self.wire_statx(stat),
            ..StatxOut::default()
        }
    }

    fn wire_statx(&self, stat: &Statx) -> gangplank_fuse::Statx {
        let mount = self.share.mounts.find(stat, MountIndex::ROOT);
        let (uid, gid) = self.guest_owner(stat);
        let time = |time: &StatxTimestamp| SxTime {
            tv_sec: time.tv_sec,
            tv_nsec: time.tv_nsec,
            ..SxTime::default()
        };
        gangplank_fuse::Statx {
            // The guest's kernel fills in its own mount id.
            mask: stat.stx_mask & !file::MOUNT,
            blksize: stat.stx_blksize,
            attributes: stat.stx_attributes.bits(),
            nlink: stat.stx_nlink,
            uid: uid.get(),
            gid: gid.get(),
            mode: stat.stx_mode,
            ino: self.guest_ino(stat.stx_ino, mount.unwrap_or(MountIndex::ROOT)),
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            attributes_mask: stat.stx_attributes_mask.bits(),
            atime: time(&stat.stx_atime),
            btime: time(&stat.stx_btime),
            ctime: time(&stat.stx_ctime),
            mtime: time(&stat.stx_mtime),
            rdev_major: stat.stx_rdev_major,
            rdev_minor: stat.stx_rdev_minor,
            dev_major: stat.stx_dev_major,
            dev_minor: stat.stx_dev_minor,
            ..gangplank_fuse::Statx::default()
        }
    }
}

/// Seconds are sent as two's complement, so times before 1970 stay correct.
fn time(time: &StatxTimestamp) -> (u64, u32) {
    (time.tv_sec.cast_unsigned(), time.tv_nsec)
}

/// Packs a device number into 32 bits (`new_encode_dev`, `linux/kdev_t.h`).
pub(super) fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// Unpacks a device number to major and minor.
pub(super) fn decode_dev(device: u32) -> (u32, u32) {
    (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    )
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn device_numbers_survive_packing() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 256), (0xfff, 0xf_ffff)] {
            assert_eq!(decode_dev(encode_dev(major, minor)), (major, minor));
        }
        assert_eq!(encode_dev(1, 3), 0x103);
        for raw in [0, u32::MAX, 0x1234_5678] {
            let (major, minor) = decode_dev(raw);
            assert_eq!(encode_dev(major, minor), raw);
        }
    }

    #[test]
    fn times_before_1970_stay_negative() {
        let mut stamp = file::stat(std::fs::File::open("/").expect("opened").as_fd())
            .expect("attributes")
            .stx_atime;
        stamp.tv_sec = -1;
        assert_eq!(time(&stamp).0.cast_signed(), -1);
    }
}
