//! SETUPMAPPING, REMOVEMAPPING: file contents in the device's shared memory window (virtio 1.2,
//! 5.11.4).

use bitflags::bitflags;

use crate::Records;

wire_struct! {
    /// SETUPMAPPING of the header's node (7.31).
    SetupmappingIn = "fuse_setupmapping_in", 40 bytes {
        /// An open handle, or all ones.
        fh: u64 => 0,
        /// Where in the file, in bytes.
        foffset: u64 => 8,
        /// How much, in bytes.
        len: u64 => 16,
        /// [`SetupmappingFlags`].
        flags: u64 => 24,
        /// Where in the window, in bytes.
        moffset: u64 => 32,
    }
}

bitflags! {
    /// Access through a mapping (`FUSE_SETUPMAPPING_FLAG_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct SetupmappingFlags: u64 {
        /// Writes.
        const WRITE = 1 << 0;
        /// Reads.
        const READ = 1 << 1;
    }
}

wire_struct! {
    /// Opens a REMOVEMAPPING; `count` times [`RemovemappingOne`] follow (7.31).
    RemovemappingIn = "fuse_removemapping_in", 4 bytes {
        /// Mappings that follow.
        count: u32 => 0,
    }
}

wire_struct! {
    /// One mapping of a REMOVEMAPPING.
    RemovemappingOne = "fuse_removemapping_one", 16 bytes {
        /// Where in the window, in bytes.
        moffset: u64 => 0,
        /// How much, in bytes.
        len: u64 => 8,
    }
}

/// The mappings of a REMOVEMAPPING.
pub type Removemapping<'a> = Records<'a, RemovemappingOne>;
