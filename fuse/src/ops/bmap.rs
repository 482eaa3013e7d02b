//! BMAP: where a file's block lies on its device.

wire_struct! {
    /// BMAP of the header's node (7.8).
    BmapIn = "fuse_bmap_in", 16 bytes {
        /// Block of the file, in units of `blocksize`.
        block: u64 => 0,
        /// Size of a block, in bytes.
        blocksize: u32 => 8,
        /// Zero.
        padding: u32 => 12,
    }
}

wire_struct! {
    /// Reply of BMAP.
    BmapOut = "fuse_bmap_out", 8 bytes {
        /// Block of the device, in the same units.
        block: u64 => 0,
    }
}
