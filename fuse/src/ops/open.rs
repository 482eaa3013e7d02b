//! OPEN, CREATE, TMPFILE, FLUSH, FSYNC, RELEASE: the life of an open file.
//!
//! OPENDIR, FSYNCDIR and RELEASEDIR use the same structures.

use bitflags::bitflags;

wire_struct! {
    /// OPEN or OPENDIR of the header's node.
    OpenIn = "fuse_open_in", 8 bytes {
        /// `O_*` flags of open(2), as the *guest's* architecture numbers them.
        flags: u32 => 0,
        /// [`OpenInFlags`] (7.33; zero before).
        open_flags: u32 => 4,
    }
}

wire_struct! {
    /// CREATE, or TMPFILE, in the header's directory; the name follows. Linux names a temporary
    /// file "/".
    CreateIn = "fuse_create_in", 16 bytes {
        /// `O_*` flags of open(2), as the *guest's* architecture numbers them.
        flags: u32 => 0,
        /// File type and permissions, `umask` already applied unless `InitFlags::DONT_MASK` was
        /// taken.
        mode: u32 => 4,
        /// The caller's umask.
        umask: u32 => 8,
        /// [`OpenInFlags`] (7.33; zero before).
        open_flags: u32 => 12,
    }
}

bitflags! {
    /// What OPEN and CREATE ask besides `O_*` (`FUSE_OPEN_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct OpenInFlags: u32 {
        /// Clear set-id bits when truncating an executable (7.33).
        const KILL_SUIDGID = 1 << 0;
    }
}

wire_struct! {
    /// Reply of OPEN and OPENDIR, and the second part of CREATE's and TMPFILE's.
    OpenOut = "fuse_open_out", 16 bytes {
        /// The open file.
        fh: u64 => 0,
        /// [`FopenFlags`].
        open_flags: u32 => 8,
        /// The backing file, with `FopenFlags::PASSTHROUGH` (7.40; zero before).
        backing_id: i32 => 12,
    }
}

bitflags! {
    /// How the client treats an open file (`FOPEN_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct FopenFlags: u32 {
        /// Reads and writes bypass the client's page cache.
        const DIRECT_IO = 1 << 0;
        /// Pages cached before stay valid.
        const KEEP_CACHE = 1 << 1;
        /// The file cannot seek.
        const NONSEEKABLE = 1 << 2;
        /// The directory's entries may be cached (7.28).
        const CACHE_DIR = 1 << 3;
        /// The file has no position at all.
        const STREAM = 1 << 4;
        /// FLUSH need not be sent at close unless writes are cached (7.35).
        const NOFLUSH = 1 << 5;
        /// Direct writes to one file may run at once (7.38).
        const PARALLEL_DIRECT_WRITES = 1 << 6;
        /// Reads and writes go to `backing_id` (7.40).
        const PASSTHROUGH = 1 << 7;
    }
}

wire_struct! {
    /// RELEASE or RELEASEDIR: the last use of `fh`.
    ReleaseIn = "fuse_release_in", 24 bytes {
        /// The open file.
        fh: u64 => 0,
        /// `O_*` flags it was opened with, as the guest's architecture numbers them.
        flags: u32 => 8,
        /// [`ReleaseFlags`].
        release_flags: u32 => 12,
        /// Whose locks go with it, with `ReleaseFlags::FLOCK_UNLOCK`.
        lock_owner: u64 => 16,
    }
}

bitflags! {
    /// What RELEASE does besides (`FUSE_RELEASE_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct ReleaseFlags: u32 {
        /// Flush first (never sent by Linux).
        const FLUSH = 1 << 0;
        /// Drop `lock_owner`'s BSD lock.
        const FLOCK_UNLOCK = 1 << 1;
    }
}

wire_struct! {
    /// FLUSH: one descriptor of `fh` was closed; POSIX locks of `lock_owner` go.
    FlushIn = "fuse_flush_in", 24 bytes {
        /// The open file.
        fh: u64 => 0,
        /// Zero.
        unused: u32 => 8,
        /// Zero.
        padding: u32 => 12,
        /// Whose POSIX locks go.
        lock_owner: u64 => 16,
    }
}

wire_struct! {
    /// FSYNC or FSYNCDIR.
    FsyncIn = "fuse_fsync_in", 16 bytes {
        /// The open file.
        fh: u64 => 0,
        /// [`FsyncFlags`].
        fsync_flags: u32 => 8,
        /// Zero.
        padding: u32 => 12,
    }
}

bitflags! {
    /// What FSYNC covers (`FUSE_FSYNC_*`).
    #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct FsyncFlags: u32 {
        /// Data without metadata, as fdatasync(2).
        const FDATASYNC = 1 << 0;
    }
}
