//! The arguments of the operations.

use fuser::TimeOrNow;

/// The changes of a file's attributes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Changes {
    /// Permission bits.
    pub(crate) mode: Option<u32>,
    /// Owner.
    pub(crate) uid: Option<u32>,
    /// Group.
    pub(crate) gid: Option<u32>,
    /// Size in bytes.
    pub(crate) size: Option<u64>,
    /// Time of last access.
    pub(crate) atime: Option<TimeOrNow>,
    /// Time of last modification.
    pub(crate) mtime: Option<TimeOrNow>,
}

/// Whether a read or write may be partial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A part is enough. The caller sees its length and continues after it.
    Any,
    /// Everything or an error. The kernel's page cache takes a short read for the end of the file,
    /// and ignores how much of a page was written.
    Whole,
}

/// The creator of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Creator {
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
}

/// The owner of new files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The creator, as on any file system. A `chown` follows the creation, if the server may do
    /// that.
    Caller,
    /// The user that the server runs as.
    Server,
}
