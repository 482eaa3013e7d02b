//! Trees of files as copies see them: in the share and on the host.

mod attributes;
mod checksum;
mod copy;
mod file;
mod host;
mod put;
mod report;
mod run;
mod share;

use std::ffi::CString;
use std::ops::Range;

use gangplank_fuse::Attr;
use rustix::fs::FileType;

pub(super) use self::copy::CopyOptions;
pub(super) use self::run::Direction;
use super::error::Result;
use super::transfer::Holes;
use crate::Data;

/// Takes file data, piece by piece, each with its offset.
type Sink<'a> = dyn FnMut(u64, Data) -> Result<()> + 'a;

/// What a file is called by its file system: two names with the same identity are hard links.
type Identity = (u64, u64);

/// The entries of a directory: their names, and what has them.
type Entries<F> = Vec<(Vec<u8>, Item<F>)>;

/// A file that was found.
#[derive(Debug, Clone)]
struct Item<F> {
    file: F,
    /// Attributes when it was found. `ino` and `blocks` need not be meaningful.
    attr: Attr,
    identity: Identity,
}

impl<F> Item<F> {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.attr.mode)
    }
}

/// A tree of files. No function follows a symbolic link. Paths are in messages only: files are
/// found by their directory and name.
trait Tree {
    /// A file, with what it takes to name it.
    type File: Clone;
    /// A regular file that gets its name when it is complete.
    type New<'a>
    where
        Self: 'a;

    /// The file's path, for messages.
    fn path(&self, file: &Self::File) -> String;

    /// What has the name in the directory.
    fn child(&self, directory: &Self::File, name: &[u8]) -> Result<Option<Item<Self::File>>>;

    /// The same file with its present attributes.
    fn refresh(&self, item: &Item<Self::File>) -> Result<Item<Self::File>>;

    /// All entries of a directory in the order of their names' bytes.
    fn entries(&self, directory: &Self::File) -> Result<Entries<Self::File>>;

    /// The target of a symbolic link.
    fn target(&self, link: &Self::File) -> Result<Vec<u8>>;

    /// Passes a range of a file to `sink` in order. Returns where the data ended: the file's length
    /// if that is in the range.
    fn read(
        &self,
        file: &Self::File,
        range: Range<u64>,
        holes: Holes,
        sink: &mut Sink<'_>,
    ) -> Result<u64>;

    fn make_directory(
        &self,
        directory: &Self::File,
        name: &[u8],
        mode: u32,
    ) -> Result<Item<Self::File>>;

    fn make_link(
        &self,
        directory: &Self::File,
        name: &[u8],
        target: &[u8],
    ) -> Result<Item<Self::File>>;

    /// Makes a fifo, a socket or a device as `like` is.
    fn make_special(
        &self,
        directory: &Self::File,
        name: &[u8],
        like: &Attr,
    ) -> Result<Item<Self::File>>;

    fn make_hard_link(&self, file: &Self::File, directory: &Self::File, name: &[u8]) -> Result<()>;

    /// Renames what is called `from` to `to`, which it replaces.
    fn rename(&self, directory: &Self::File, from: &[u8], to: &[u8]) -> Result<()>;

    /// Removes what has the name, with everything below it.
    fn remove(&self, directory: &Self::File, name: &[u8], item: &Item<Self::File>) -> Result<()>;

    /// Begins a regular file. An `old` one, which is regular too, passes its permissions and, where
    /// permitted, its owner on, and must be writable.
    fn begin(
        &self,
        directory: &Self::File,
        name: &[u8],
        old: Option<&Item<Self::File>>,
        mode: u32,
    ) -> Result<Self::New<'_>>;

    /// Continues a regular file that is called `temporary` so far, behind its first `start` bytes;
    /// begins it without a `partial` one. It stays if the copy fails.
    fn resume(
        &self,
        directory: &Self::File,
        name: &[u8],
        temporary: &[u8],
        partial: Option<(&Item<Self::File>, u64)>,
        mode: u32,
    ) -> Result<Self::New<'_>>;

    /// Fails if the regular file cannot be opened for writing.
    fn must_be_writable(&self, file: &Self::File) -> Result<()>;

    /// The permissions of a new file that is made with `mode`.
    fn mode_of_new(&self, mode: u32) -> u32;

    /// Writes what `read` passes to its sink. Returns what `read` returns.
    fn fill(
        &self,
        new: &mut Self::New<'_>,
        read: &mut dyn FnMut(&mut Sink<'_>) -> Result<u64>,
    ) -> Result<u64>;

    /// Sets the file's length, closes it, lets `prepare` change it, and gives it its name.
    fn publish(
        &self,
        new: Self::New<'_>,
        len: u64,
        prepare: &mut dyn FnMut(&Self::File) -> Result<()>,
    ) -> Result<()>;

    /// The extended attributes; none where the file system has no such thing.
    fn xattrs(&self, file: &Self::File) -> Result<Vec<(CString, Vec<u8>)>>;

    fn set_xattr(&self, file: &Self::File, name: &CString, value: &[u8]) -> Result<()>;

    /// Gives the file away; `None` leaves the user as it is.
    fn set_owner(&self, file: &Self::File, uid: Option<u32>, gid: u32) -> Result<()>;

    fn set_mode(&self, file: &Self::File, mode: u32) -> Result<()>;

    /// Sets the times of access and modification to those of `like`.
    fn set_times(&self, file: &Self::File, like: &Attr) -> Result<()>;
}
