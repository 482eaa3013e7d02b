//! READ, WRITE, LSEEK, FALLOCATE, COPY_FILE_RANGE: a file's contents.

use bitflags::bitflags;

wire_struct! {
    /// READ, READDIR or READDIRPLUS; the reply is at most `size` bytes.
    ReadIn = "fuse_read_in", 40 bytes {
        /// The open file or directory.
        fh: u64 => 0,
        /// Where to read: bytes in a file, an entry's `off` in a directory.
        offset: u64 => 8,
        /// Most bytes wanted.
        size: u32 => 16,
        /// [`ReadFlags`].
        read_flags: u32 => 20,
        /// Owner of mandatory locks, with `ReadFlags::LOCKOWNER`.
        lock_owner: u64 => 24,
        /// `O_*` flags of the open file, as the guest's architecture numbers them.
        flags: u32 => 32,
        /// Zero.
        padding: u32 => 36,
    }
}

bitflags! {
    /// Flags of READ (`FUSE_READ_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct ReadFlags: u32 {
        /// `lock_owner` is valid.
        const LOCKOWNER = 1 << 1;
    }
}

wire_struct! {
    /// WRITE; `size` bytes of data follow, left in the transport.
    WriteIn = "fuse_write_in", 40 bytes {
        /// The open file.
        fh: u64 => 0,
        /// Where to write, in bytes.
        offset: u64 => 8,
        /// Bytes that follow.
        size: u32 => 16,
        /// [`WriteFlags`].
        write_flags: u32 => 20,
        /// Owner of mandatory locks, with `WriteFlags::LOCKOWNER`.
        lock_owner: u64 => 24,
        /// `O_*` flags of the open file, as the guest's architecture numbers them.
        flags: u32 => 32,
        /// Zero.
        padding: u32 => 36,
    }
}

bitflags! {
    /// Flags of WRITE (`FUSE_WRITE_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct WriteFlags: u32 {
        /// Written back from the client's cache: `fh` and the caller's ids are a guess.
        const CACHE = 1 << 0;
        /// `lock_owner` is valid.
        const LOCKOWNER = 1 << 1;
        /// Clear set-id bits (7.31).
        const KILL_SUIDGID = 1 << 2;
    }
}

wire_struct! {
    /// Reply of WRITE and of COPY_FILE_RANGE's 32-bit form.
    WriteOut = "fuse_write_out", 8 bytes {
        /// Bytes written.
        size: u32 => 0,
        /// Zero.
        padding: u32 => 4,
    }
}

wire_struct! {
    /// LSEEK (7.24).
    LseekIn = "fuse_lseek_in", 24 bytes {
        /// The open file.
        fh: u64 => 0,
        /// From where, in bytes; signed, carried as unsigned.
        offset: u64 => 8,
        /// `SEEK_*`; Linux sends SEEK_DATA and SEEK_HOLE and settles the others itself.
        whence: u32 => 16,
        /// Zero.
        padding: u32 => 20,
    }
}

wire_struct! {
    /// Reply of LSEEK.
    LseekOut = "fuse_lseek_out", 8 bytes {
        /// The position found, in bytes.
        offset: u64 => 0,
    }
}

wire_struct! {
    /// FALLOCATE (7.19).
    FallocateIn = "fuse_fallocate_in", 32 bytes {
        /// The open file.
        fh: u64 => 0,
        /// Where the range begins, in bytes.
        offset: u64 => 8,
        /// How long it is, in bytes.
        length: u64 => 16,
        /// `FALLOC_FL_*` of fallocate(2).
        mode: u32 => 24,
        /// Zero.
        padding: u32 => 28,
    }
}

wire_struct! {
    /// COPY_FILE_RANGE (7.28) and COPY_FILE_RANGE_64 (7.45), from the header's node.
    CopyFileRangeIn = "fuse_copy_file_range_in", 56 bytes {
        /// The open file read.
        fh_in: u64 => 0,
        /// Where to read, in bytes.
        off_in: u64 => 8,
        /// The node written.
        nodeid_out: u64 => 16,
        /// The open file written.
        fh_out: u64 => 24,
        /// Where to write, in bytes.
        off_out: u64 => 32,
        /// Most bytes to copy.
        len: u64 => 40,
        /// Flags of copy_file_range(2), none defined.
        flags: u64 => 48,
    }
}

wire_struct! {
    /// Reply of COPY_FILE_RANGE_64; the 32-bit form answers with [`WriteOut`].
    CopyFileRangeOut = "fuse_copy_file_range_out", 8 bytes {
        /// Bytes copied.
        bytes_copied: u64 => 0,
    }
}
