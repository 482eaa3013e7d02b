//! Arguments of the operations.

use fuser::TimeOrNow;

/// What is to be changed of a file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Changes {
    /// Permission bits.
    pub(crate) mode: Option<u32>,
    /// Owner.
    pub(crate) uid: Option<u32>,
    /// Group.
    pub(crate) gid: Option<u32>,
    /// Bytes.
    pub(crate) size: Option<u64>,
    /// Time of last access.
    pub(crate) atime: Option<TimeOrNow>,
    /// Time of last modification.
    pub(crate) mtime: Option<TimeOrNow>,
}

/// How much of a read or write has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A part will do: who asked sees how much it was, and goes on behind it.
    Any,
    /// All of it, or it is an error. The kernel's page cache takes a short read for the end of the
    /// file, and does not look at how much of a page was written.
    Whole,
}

/// Who makes a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Creator {
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
}

/// To whom new files belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// To who makes them, as on any file system: given to them right after, where the server may do that.
    Caller,
    /// To whom the server makes them for.
    Server,
}
