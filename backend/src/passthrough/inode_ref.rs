//! References by which an inode can be reopened.

use super::inode_memory::INCLUDED_BYTES;
use super::mount_handles::OpenableHandle;
use super::remembered_names::RememberedName;
use crate::sys::file::Statx;
use crate::sys::file_handle::FileHandle;

/// How to reopen an inode, and to recognise it.
#[derive(Debug, Clone)]
pub(super) enum InodeRef {
    /// By file handle.
    Handle(OpenableHandle),
    /// By name.
    Name {
        /// The name and the directory that holds it.
        name: RememberedName,
        /// The inode's birth time.
        birth_time: BirthTime,
    },
    /// Not possible: the inode had no name any more when its descriptor was evicted.
    Unlinked,
}

/// When an inode was made. Packed to 12 bytes because a guest may know millions of inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(Rust, packed(4))]
pub(super) struct BirthTime {
    /// Since the epoch.
    seconds: i64,
    /// Below 1,000,000,000.
    nanoseconds: u32,
}

/// Distinguishes an inode from a later one with the same number.
#[derive(Debug, Clone)]
pub(super) struct InodeFingerprint {
    /// The file handle, if the file system has handles.
    pub(super) handle: Option<FileHandle>,
    /// The birth time, if the file system has one.
    pub(super) birth_time: Option<BirthTime>,
}

impl BirthTime {
    /// The time with these parts.
    pub(super) fn from_parts(seconds: i64, nanoseconds: u32) -> Self {
        Self {
            seconds,
            nanoseconds,
        }
    }

    /// Seconds since the epoch.
    pub(super) fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds of the second, less than 1,000,000,000.
    pub(super) fn nanoseconds(self) -> u32 {
        self.nanoseconds
    }
}

impl InodeRef {
    /// Bytes of a name or handle that is longer than an inode's memory includes.
    pub(super) fn extra_bytes(&self) -> u64 {
        let length = match self {
            Self::Handle(handle) => handle.handle().len(),
            Self::Name { name, .. } => name.len(),
            Self::Unlinked => 0,
        };
        extra_bytes(length)
    }
}

/// Bytes of a name or handle of this length that an inode's memory does not include.
pub(super) fn extra_bytes(length: usize) -> u64 {
    length.saturating_sub(INCLUDED_BYTES) as u64
}

/// The birth time in `stat`, if the file system has one.
pub(super) fn birth_time(stat: &Statx) -> Option<BirthTime> {
    let known = stat.stx_mask & libc::STATX_BTIME != 0;
    known.then_some(BirthTime {
        seconds: stat.stx_btime.tv_sec,
        nanoseconds: stat.stx_btime.tv_nsec,
    })
}
