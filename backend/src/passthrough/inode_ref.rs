//! References by which an inode can be reopened.

use super::mount_handles::OpenableHandle;
use crate::sys::file::Statx;
use crate::sys::file_handle::FileHandle;

/// How to reopen an inode, and to recognise it.
#[derive(Debug, Clone)]
pub(super) enum InodeRef {
    /// By file handle.
    Handle(OpenableHandle),
    /// By path.
    Path {
        /// Path relative to the share's root, without a `/` at either end.
        path: Box<[u8]>,
        /// The inode's birth time.
        birth_time: BirthTime,
    },
    /// Not possible: the inode had no name any more when its descriptor was evicted.
    Unlinked,
}

/// Seconds since the epoch, and nanoseconds.
pub(super) type BirthTime = (i64, u32);

/// Distinguishes an inode from a later one with the same number.
#[derive(Debug, Clone)]
pub(super) struct InodeFingerprint {
    /// The file handle, if the file system has handles.
    pub(super) handle: Option<FileHandle>,
    /// The birth time, if the file system has one.
    pub(super) birth_time: Option<BirthTime>,
}

impl InodeRef {
    /// Whether the fingerprint is that of the referenced inode.
    pub(super) fn matches(&self, fingerprint: &InodeFingerprint) -> bool {
        match self {
            Self::Handle(handle) => fingerprint.handle.as_ref() == Some(handle.handle()),
            Self::Path { birth_time, .. } => fingerprint.birth_time == Some(*birth_time),
            Self::Unlinked => false,
        }
    }

    /// Whether the reference stays valid when the inode is renamed.
    pub(super) fn survives_rename(&self) -> bool {
        matches!(self, Self::Handle(_))
    }
}

/// The birth time in `stat`, if the file system has one.
pub(super) fn birth_time(stat: &Statx) -> Option<BirthTime> {
    let known = stat.stx_mask & libc::STATX_BTIME != 0;
    known.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}
