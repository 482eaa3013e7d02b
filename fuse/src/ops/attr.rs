//! GETATTR, SETATTR, STATX: a node's attributes.

use bitflags::bitflags;

wire_struct! {
    /// A node's attributes, as stat(2) tells them.
    Attr = "fuse_attr", 88 bytes {
        /// Inode number, as `st_ino` shows it.
        ino: u64 => 0,
        /// Size, in bytes.
        size: u64 => 8,
        /// Space taken, in units of 512 bytes.
        blocks: u64 => 16,
        /// Last access, seconds since 1970; signed, carried as unsigned.
        atime: u64 => 24,
        /// Last change of data, likewise.
        mtime: u64 => 32,
        /// Last change of the inode, likewise.
        ctime: u64 => 40,
        /// Nanoseconds of `atime`.
        atimensec: u32 => 48,
        /// Nanoseconds of `mtime`.
        mtimensec: u32 => 52,
        /// Nanoseconds of `ctime`.
        ctimensec: u32 => 56,
        /// File type and permissions, as `st_mode`.
        mode: u32 => 60,
        /// Hard links.
        nlink: u32 => 64,
        /// Owner.
        uid: u32 => 68,
        /// Group.
        gid: u32 => 72,
        /// Device number of a device node, in the kernel's 32-bit encoding (`new_encode_dev`).
        rdev: u32 => 76,
        /// Preferred size of I/O, in bytes.
        blksize: u32 => 80,
        /// [`AttrFlags`] (7.32; padding before).
        flags: u32 => 84,
    }
}

bitflags! {
    /// What else is special about a node (`FUSE_ATTR_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct AttrFlags: u32 {
        /// Root of another file system; the client mounts it there by itself.
        const SUBMOUNT = 1 << 0;
        /// Use DAX for this file.
        const DAX = 1 << 1;
    }
}

wire_struct! {
    /// GETATTR of the header's node.
    GetattrIn = "fuse_getattr_in", 16 bytes {
        /// [`GetattrFlags`].
        getattr_flags: u32 => 0,
        /// Zero.
        dummy: u32 => 4,
        /// An open handle, with `GetattrFlags::FH`.
        fh: u64 => 8,
    }
}

bitflags! {
    /// Flags of GETATTR and STATX (`FUSE_GETATTR_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct GetattrFlags: u32 {
        /// `fh` is valid.
        const FH = 1 << 0;
    }
}

wire_struct! {
    /// Reply of GETATTR and SETATTR.
    AttrOut = "fuse_attr_out", 104 bytes {
        /// How long the attributes may be cached, in seconds.
        attr_valid: u64 => 0,
        /// Nanoseconds of `attr_valid`.
        attr_valid_nsec: u32 => 8,
        /// Zero.
        dummy: u32 => 12,
        /// The attributes.
        attr: Attr => 16,
    }
}

wire_struct! {
    /// SETATTR of the header's node: what `valid` names is set, the rest left.
    SetattrIn = "fuse_setattr_in", 88 bytes {
        /// [`SetattrValid`].
        valid: u32 => 0,
        /// Zero.
        padding: u32 => 4,
        /// An open handle, with `SetattrValid::FH`.
        fh: u64 => 8,
        /// New size, in bytes.
        size: u64 => 16,
        /// Owner of mandatory locks, with `SetattrValid::LOCKOWNER`.
        lock_owner: u64 => 24,
        /// New access time, seconds since 1970; signed, carried as unsigned.
        atime: u64 => 32,
        /// New modification time, likewise.
        mtime: u64 => 40,
        /// New change time, likewise; only with a writeback cache.
        ctime: u64 => 48,
        /// Nanoseconds of `atime`.
        atimensec: u32 => 56,
        /// Nanoseconds of `mtime`.
        mtimensec: u32 => 60,
        /// Nanoseconds of `ctime`.
        ctimensec: u32 => 64,
        /// New permissions, as `st_mode`.
        mode: u32 => 68,
        /// Zero.
        unused4: u32 => 72,
        /// New owner.
        uid: u32 => 76,
        /// New group.
        gid: u32 => 80,
        /// Zero.
        unused5: u32 => 84,
    }
}

bitflags! {
    /// Which fields of [`SetattrIn`] count (`FATTR_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct SetattrValid: u32 {
        /// `mode`.
        const MODE = 1 << 0;
        /// `uid`.
        const UID = 1 << 1;
        /// `gid`.
        const GID = 1 << 2;
        /// `size`.
        const SIZE = 1 << 3;
        /// `atime`.
        const ATIME = 1 << 4;
        /// `mtime`.
        const MTIME = 1 << 5;
        /// `fh`.
        const FH = 1 << 6;
        /// The access time becomes the server's now.
        const ATIME_NOW = 1 << 7;
        /// The modification time becomes the server's now.
        const MTIME_NOW = 1 << 8;
        /// `lock_owner`.
        const LOCKOWNER = 1 << 9;
        /// `ctime`.
        const CTIME = 1 << 10;
        /// Set-id bits are to be cleared with the change (7.33).
        const KILL_SUIDGID = 1 << 11;
    }
}

wire_struct! {
    /// STATX of the header's node (7.39).
    StatxIn = "fuse_statx_in", 24 bytes {
        /// [`GetattrFlags`].
        getattr_flags: u32 => 0,
        /// Zero.
        reserved: u32 => 4,
        /// An open handle, with `GetattrFlags::FH`.
        fh: u64 => 8,
        /// `AT_STATX_*` flags of statx(2).
        sx_flags: u32 => 16,
        /// `STATX_*` fields wanted.
        sx_mask: u32 => 20,
    }
}

wire_struct! {
    /// A timestamp, laid out as `struct statx_timestamp`.
    SxTime = "fuse_sx_time", 16 bytes {
        /// Seconds since 1970.
        tv_sec: i64 => 0,
        /// Nanoseconds.
        tv_nsec: u32 => 8,
        /// Zero.
        __reserved: i32 => 12,
    }
}

wire_struct! {
    /// A node's attributes, laid out as `struct statx`.
    Statx = "fuse_statx", 256 bytes {
        /// `STATX_*` fields that are filled in.
        mask: u32 => 0,
        /// Preferred size of I/O, in bytes.
        blksize: u32 => 4,
        /// `STATX_ATTR_*` that are set.
        attributes: u64 => 8,
        /// Hard links.
        nlink: u32 => 16,
        /// Owner.
        uid: u32 => 20,
        /// Group.
        gid: u32 => 24,
        /// File type and permissions.
        mode: u16 => 28,
        /// Zero.
        __spare0: [u16; 1] => 30,
        /// Inode number.
        ino: u64 => 32,
        /// Size, in bytes.
        size: u64 => 40,
        /// Space taken, in units of 512 bytes.
        blocks: u64 => 48,
        /// `STATX_ATTR_*` that the server can tell.
        attributes_mask: u64 => 56,
        /// Last access.
        atime: SxTime => 64,
        /// Creation.
        btime: SxTime => 80,
        /// Last change of the inode.
        ctime: SxTime => 96,
        /// Last change of data.
        mtime: SxTime => 112,
        /// Major number of a device node.
        rdev_major: u32 => 128,
        /// Minor number of a device node.
        rdev_minor: u32 => 132,
        /// Major number of the device it lives on.
        dev_major: u32 => 136,
        /// Minor number of the device it lives on.
        dev_minor: u32 => 140,
        /// Zero.
        __spare2: [u64; 14] => 144,
    }
}

wire_struct! {
    /// Reply of STATX (7.39).
    StatxOut = "fuse_statx_out", 288 bytes {
        /// How long the attributes may be cached, in seconds.
        attr_valid: u64 => 0,
        /// Nanoseconds of `attr_valid`.
        attr_valid_nsec: u32 => 8,
        /// Zero.
        flags: u32 => 12,
        /// Zero.
        spare: [u64; 2] => 16,
        /// The attributes.
        stat: Statx => 32,
    }
}
