//! READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, LINK: the tree of names.
//!
//! READLINK, SYMLINK, UNLINK and RMDIR have no structure: names alone, or nothing. A link's target
//! is the reply of READLINK, without NUL.

wire_struct! {
    /// MKNOD in the header's directory; the name follows.
    MknodIn = "fuse_mknod_in", 16 bytes {
        /// File type and permissions, `umask` already applied unless `InitFlags::DONT_MASK` was
        /// taken.
        mode: u32 => 0,
        /// Device number of a device node, in the kernel's 32-bit encoding.
        rdev: u32 => 4,
        /// The caller's umask.
        umask: u32 => 8,
        /// Zero.
        padding: u32 => 12,
    }
}

wire_struct! {
    /// MKDIR in the header's directory; the name follows.
    MkdirIn = "fuse_mkdir_in", 8 bytes {
        /// Permissions, `umask` already applied unless `InitFlags::DONT_MASK` was taken.
        mode: u32 => 0,
        /// The caller's umask.
        umask: u32 => 4,
    }
}

wire_struct! {
    /// RENAME out of the header's directory; the old name and the new name follow.
    RenameIn = "fuse_rename_in", 8 bytes {
        /// The directory moved to.
        newdir: u64 => 0,
    }
}

wire_struct! {
    /// RENAME2 out of the header's directory; the old name and the new name follow (7.23).
    Rename2In = "fuse_rename2_in", 16 bytes {
        /// The directory moved to.
        newdir: u64 => 0,
        /// `RENAME_*` flags of renameat2(2).
        flags: u32 => 8,
        /// Zero.
        padding: u32 => 12,
    }
}

wire_struct! {
    /// LINK into the header's directory; the new name follows.
    LinkIn = "fuse_link_in", 8 bytes {
        /// The node that gets another name.
        oldnodeid: u64 => 0,
    }
}
