//! The structures that rhostfs copies to its client: attributes, directory entries, the state of a
//! file system, times.

use zerocopy::little_endian::{I64, U64};

use super::wire::wire_struct;

wire_struct! {
    /// A file's attributes.
    pub UsrStat = "struct USR_stat", 68 bytes from 0 {
        /// Device of the file. Our server puts a mark here for open files, which tells a file from
        /// a later one with its inode number.
        dev: u32 => 0,
        /// Inode number.
        ino: u32 => 4,
        /// Type and permission bits.
        mode: u32 => 8,
        /// Links.
        nlink: u32 => 12,
        /// Owner.
        uid: u32 => 16,
        /// Group.
        gid: u32 => 20,
        /// Zero, or the upper half of the size ([`WHOLE_SIZES`]).
        pad0: u32 => 24,
        /// Device number of a device file, in glibc's encoding cut to 32 bits.
        rdev: u32 => 28,
        /// Bytes.
        size: u32 => 32,
        /// Bytes of a good transfer.
        blksize: u32 => 36,
        /// Blocks of 512 bytes.
        blocks: u32 => 40,
        /// Last access, seconds since 1970.
        atime: I64 => 44,
        /// Last modification, seconds since 1970.
        mtime: I64 => 52,
        /// Last change of the attributes, seconds since 1970.
        ctime: I64 => 60,
    }
}

/// A value by which our client and server recognise each other's 64-bit sizes. In the second
/// integer of a stat, where the original client leaves uninitialised memory: the client reads the
/// upper half of the size from [`UsrStat::pad0`]. In that of a truncate: the second long has the
/// upper half of the length. The value is odd, which no address on a stack is.
pub const WHOLE_SIZES: i32 = 0x676c_6b67;

impl UsrStat {
    /// The file's size, if both ends use [`WHOLE_SIZES`].
    #[must_use]
    pub fn whole_size(&self) -> u64 {
        u64::from(self.pad0) << 32 | u64::from(self.size)
    }

    /// Sets both halves of the size.
    pub fn set_whole_size(&mut self, size: u64) {
        let [a, b, c, d, e, f, g, h] = size.to_le_bytes();
        self.size = u32::from_le_bytes([a, b, c, d]);
        self.pad0 = u32::from_le_bytes([e, f, g, h]);
    }
}

wire_struct! {
    /// One entry of a directory.
    pub UsrDirent = "struct USR_dirent", 268 bytes from 0 {
        /// Inode number.
        ino: u32 => 0,
        /// Position behind this entry.
        off: i32 => 4,
        /// 12 and the name's length, rounded up to 4.
        reclen: u16 => 8,
        /// `DT_*`.
        kind: u8 => 10,
        /// Name and a zero.
        name: [u8; 256] => 11,
        /// Zero.
        padding: u8 => 267,
    }
}

wire_struct! {
    /// The state of a file system.
    pub Statfs64 = "struct statfs64", 84 bytes from 0 {
        /// Magic number.
        kind: u32 => 0,
        /// Bytes of a block.
        bsize: u32 => 4,
        /// Blocks.
        blocks: U64 => 8,
        /// Free blocks.
        bfree: U64 => 16,
        /// Free blocks for users other than root.
        bavail: U64 => 24,
        /// Inodes.
        files: U64 => 32,
        /// Free inodes.
        ffree: U64 => 40,
        /// Id of the file system.
        fsid: [u32; 2] => 48,
        /// Longest name.
        namelen: u32 => 56,
        /// Bytes of a fragment.
        frsize: u32 => 60,
        /// Mount flags.
        flags: u32 => 64,
        /// Zero.
        spare: [u32; 4] => 68,
    }
}

wire_struct! {
    /// A point in time.
    pub Timeval = "struct timeval", 8 bytes from 0 {
        /// Seconds since 1970.
        sec: i32 => 0,
        /// Microseconds.
        usec: i32 => 4,
    }
}

wire_struct! {
    /// Argument of `utimes` and `futimes`.
    pub Utimes = "struct timeval[2]", 16 bytes from 0 {
        /// Last access.
        atime: Timeval => 0,
        /// Last modification.
        mtime: Timeval => 8,
    }
}
