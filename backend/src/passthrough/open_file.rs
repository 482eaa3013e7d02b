//! One open file or directory, and its record in the guest's state.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gangplank_fuse::NodeId;

use super::budget::Descriptor;
use super::dir_stream::DirStream;
use super::mounts::{Mount, MountIndex};
use super::open_flags::OpenFlags;
use crate::state::files::FileRecord;

/// One open file or directory.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// The node that is open.
    pub(super) node: NodeId,
    descriptor: Arc<Descriptor>,
    /// Whether the descriptor is open for writing.
    pub(super) writable: bool,
    /// Whether transfers bypass the page cache; cleared when direct I/O fails.
    pub(super) direct: AtomicBool,
    /// Whether `RWF_NOWAIT` works on this file; cleared when it fails.
    pub(super) supports_nowait: AtomicBool,
    /// Whether a short read ends at the end of the file or before an error.
    pub(super) short_read_is_final: bool,
    /// Whether close can report an error that no other call reports.
    pub(super) close_reports_errors: bool,
    /// Whether the descriptor may be cached after the close.
    pub(super) cacheable: bool,
    /// For a directory: how far it is listed.
    pub(super) dir_stream: Option<Box<DirStream>>,
    /// The flags of open(2), to open it again with.
    flags: i32,
}

impl OpenFile {
    /// A regular file that is not in a table yet.
    pub(super) fn file(
        node: NodeId,
        descriptor: Arc<Descriptor>,
        flags: OpenFlags,
        mount: &Mount,
    ) -> Self {
        Self {
            node,
            descriptor,
            writable: flags.write,
            direct: AtomicBool::new(flags.direct),
            supports_nowait: AtomicBool::new(true),
            short_read_is_final: mount.short_read_is_final(),
            close_reports_errors: mount.close_reports_errors(),
            cacheable: flags.is_read_only()
                && mount.short_read_is_final()
                && !mount.close_reports_errors(),
            dir_stream: None,
            flags: flags.host_flags() & !libc::O_TRUNC,
        }
    }

    /// A directory that is not in a table yet.
    pub(super) fn directory(node: NodeId, descriptor: Descriptor, dir_stream: DirStream) -> Self {
        Self {
            node,
            descriptor: Arc::new(descriptor),
            writable: false,
            direct: AtomicBool::new(false),
            supports_nowait: AtomicBool::new(false),
            short_read_is_final: true,
            close_reports_errors: false,
            cacheable: false,
            dir_stream: Some(Box::new(dir_stream)),
            flags: OPEN_DIRECTORY,
        }
    }

    /// The file's descriptor.
    pub(super) fn descriptor(&self) -> &Arc<Descriptor> {
        &self.descriptor
    }

    /// Whether transfers bypass the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The flags of open(2) by which directories are opened.
pub(super) const OPEN_DIRECTORY: i32 = libc::O_RDONLY | libc::O_DIRECTORY;

/// The properties of an open file as one number.
pub(super) mod packed {
    pub(in crate::passthrough) const WRITABLE: u32 = 1;
    pub(in crate::passthrough) const DIRECT: u32 = 1 << 1;
    pub(in crate::passthrough) const SHORT_READ_IS_FINAL: u32 = 1 << 2;
    pub(in crate::passthrough) const CLOSE_REPORTS_ERRORS: u32 = 1 << 3;
    pub(in crate::passthrough) const CACHEABLE: u32 = 1 << 4;
    pub(in crate::passthrough) const DIRECTORY: u32 = 1 << 5;
    /// Could not be opened when the guest arrived.
    pub(in crate::passthrough) const LOST: u32 = 1 << 6;
    /// Has a lock by flock(2).
    pub(in crate::passthrough) const FLOCK: u32 = 1 << 7;
    /// The descriptor is held outside of the daemon.
    pub(in crate::passthrough) const HELD: u32 = 1 << 8;
    /// The descriptor was lost, and the file is to be opened again.
    pub(in crate::passthrough) const TO_REOPEN: u32 = 1 << 9;
}

impl OpenFile {
    /// What its record has as `flags`.
    pub(super) fn pack(&self) -> u32 {
        [
            (self.writable, packed::WRITABLE),
            (self.is_direct(), packed::DIRECT),
            (self.short_read_is_final, packed::SHORT_READ_IS_FINAL),
            (self.close_reports_errors, packed::CLOSE_REPORTS_ERRORS),
            (self.cacheable, packed::CACHEABLE),
            (self.dir_stream.is_some(), packed::DIRECTORY),
        ]
        .into_iter()
        .fold(
            0,
            |flags, (has, flag)| if has { flags | flag } else { flags },
        )
    }

    /// What its record has as `mount`.
    pub(super) fn mount_or_flags(&self) -> u32 {
        let stream = self.dir_stream.as_ref();
        stream.map_or(self.flags.cast_unsigned(), |stream| stream.mount.0)
    }

    /// The file of a record that an earlier worker made.
    pub(super) fn from_record(record: &FileRecord, descriptor: Descriptor) -> Self {
        let flags = record.flags.load(Ordering::Relaxed);
        let mount = MountIndex(record.mount.load(Ordering::Relaxed));
        let has = |flag| flags & flag != 0;
        Self {
            node: NodeId::new(record.node.load(Ordering::Relaxed)),
            descriptor: Arc::new(descriptor),
            writable: has(packed::WRITABLE),
            direct: AtomicBool::new(has(packed::DIRECT)),
            supports_nowait: AtomicBool::new(!has(packed::DIRECTORY)),
            short_read_is_final: has(packed::SHORT_READ_IS_FINAL),
            close_reports_errors: has(packed::CLOSE_REPORTS_ERRORS),
            cacheable: has(packed::CACHEABLE),
            dir_stream: has(packed::DIRECTORY).then(|| Box::new(DirStream::resumed(mount))),
            flags: flags_of(record),
        }
    }
}

/// The flags of open(2) to open a file again with.
pub(super) fn flags_of(record: &FileRecord) -> i32 {
    match record.flags.load(Ordering::Relaxed) & packed::DIRECTORY {
        0 => record.mount.load(Ordering::Relaxed).cast_signed(),
        _ => OPEN_DIRECTORY,
    }
}
