//! STATFS, SYNCFS, ACCESS, INTERRUPT, DESTROY: the file system as a whole, and other requests.
//!
//! STATFS and DESTROY have no structure.

wire_struct! {
    /// A file system's figures, as statfs(2) tells them.
    Kstatfs = "fuse_kstatfs", 80 bytes {
        /// Size, in units of `frsize`.
        blocks: u64 => 0,
        /// Free, likewise.
        bfree: u64 => 8,
        /// Free to ordinary users, likewise.
        bavail: u64 => 16,
        /// Inodes.
        files: u64 => 24,
        /// Inodes free.
        ffree: u64 => 32,
        /// Preferred size of I/O, in bytes.
        bsize: u32 => 40,
        /// Longest name, in bytes.
        namelen: u32 => 44,
        /// Unit of the block counts, in bytes.
        frsize: u32 => 48,
        /// Zero.
        padding: u32 => 52,
        /// Zero.
        spare: [u32; 6] => 56,
    }
}

wire_struct! {
    /// Reply of STATFS.
    StatfsOut = "fuse_statfs_out", 80 bytes {
        /// The figures.
        st: Kstatfs => 0,
    }
}

wire_struct! {
    /// SYNCFS of the header's node, the root of the file system or of a submount (7.34).
    SyncfsIn = "fuse_syncfs_in", 8 bytes {
        /// Zero.
        padding: u64 => 0,
    }
}

wire_struct! {
    /// ACCESS to the header's node.
    AccessIn = "fuse_access_in", 8 bytes {
        /// `R_OK`, `W_OK`, `X_OK` of access(2).
        mask: u32 => 0,
        /// Zero.
        padding: u32 => 4,
    }
}

wire_struct! {
    /// INTERRUPT. The header's own `unique` is this one's with bit 0 set.
    InterruptIn = "fuse_interrupt_in", 8 bytes {
        /// The request to abandon.
        unique: u64 => 0,
    }
}
