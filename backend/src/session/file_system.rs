//! The seam between the FUSE protocol and the storage under it.

use std::ffi::CStr;
use std::io;

use gangplank_fuse::{
    AttrOut, CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, FileLock, Handle, InitFlags,
    Kstatfs, LkIn, LseekIn, NodeId, OpenIn, OpenOut, ReadIn, ReleaseIn, SetattrIn, SetxattrIn,
    StatxIn, StatxOut, SupplementaryGroups, WriteIn,
};

use gangplank_fuse::dir::DirentWriter;

use super::name::Name;
use crate::device::request::IoMode;
use crate::sys::buffers::{Reader, Writer};
use crate::sys::interrupt::Interruption;

/// Who asks: the guest process's credentials as the request header tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// File system user id in the guest.
    pub uid: u32,
    /// File system group id in the guest.
    pub gid: u32,
    /// Process id in the guest; 0 when the kernel itself asks.
    pub pid: u32,
}

/// Who creates an object, and under which umask.
#[derive(Debug, Clone, Copy)]
pub struct Creator<'a> {
    /// Becomes the owner, unless the parent directory's setgid bit gives the group.
    pub caller: Caller,
    /// The caller's umask. Only to be applied where [`InitFlags::DONT_MASK`] was negotiated; else the guest has applied it.
    pub umask: u32,
    /// The one supplementary group, if any, that lets the caller give the new object its parent's group
    /// ([`InitFlags::CREATE_SUPP_GROUP`]).
    pub groups: Option<SupplementaryGroups<'a>>,
}

/// What a lock request does when the lock is held by another.
#[derive(Debug, Clone, Copy)]
pub enum LockWait<'a> {
    /// Fail with EAGAIN.
    No,
    /// Wait until it is free, or fail with EINTR once interrupted.
    UntilFree(&'a Interruption),
}

/// A file system that one guest uses. Calls come from several threads at once.
///
/// Errors are errno values in [`io::Error`]; they reach the guest as they are. Names have been checked to be single
/// components; node ids and handles have not been checked at all: unknown ones give ESTALE and EBADF. Every
/// [`EntryOut`] returned with a node id other than 0 counts as one look-up, to be undone by [`FileSystem::forget`].
/// Flags arrive as the guest's kernel sent them, in the numbering of its architecture.
#[allow(unused_variables)]
pub trait FileSystem: Send + Sync {
    /// Starts the session: gets what the guest's kernel offers and returns the part of it that is wanted. Flags that
    /// concern only the transport (message sizes) are the session's own business and may be ignored here.
    fn init(&self, offered: InitFlags) -> InitFlags;

    /// Ends the session: all node ids, handles and locks are void, and what they held is freed. Another
    /// [`FileSystem::init`] may follow.
    fn destroy(&self);

    /// Finds `name` in `parent`. A node id of 0 says that it does not exist and that the guest may remember that for
    /// the entry's time.
    fn lookup(&self, parent: NodeId, name: Name<'_>) -> io::Result<EntryOut>;

    /// Undoes `count` look-ups of `node`. Unknown nodes and counts that are too large are logged and otherwise harmless.
    fn forget(&self, node: NodeId, count: u64);

    /// Attributes, through `handle` where the guest names one.
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> io::Result<AttrOut>;

    /// Extended attributes of the inode (`statx(2)`): the birth time among others.
    fn statx(&self, node: NodeId, args: &StatxIn) -> io::Result<StatxOut> {
        Err(unsupported())
    }

    /// Changes attributes: mode, owner, size, times.
    fn setattr(&self, caller: Caller, node: NodeId, args: &SetattrIn) -> io::Result<AttrOut>;

    /// Puts a symbolic link's target into `target`, which has room for the longest one, and returns its length.
    fn readlink(&self, node: NodeId, target: &mut [u8]) -> io::Result<usize>;

    /// Makes a symbolic link.
    fn symlink(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        target: &CStr,
    ) -> io::Result<EntryOut>;

    /// Makes a file, device node, FIFO or socket.
    fn mknod(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        rdev: u32,
    ) -> io::Result<EntryOut>;

    /// Makes a directory.
    fn mkdir(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
    ) -> io::Result<EntryOut>;

    /// Removes a name that is not a directory.
    fn unlink(&self, parent: NodeId, name: Name<'_>) -> io::Result<()>;

    /// Removes an empty directory.
    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> io::Result<()>;

    /// Renames, with the `RENAME_*` flags of `renameat2(2)`.
    fn rename(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> io::Result<()>;

    /// Gives `node` another name.
    fn link(&self, node: NodeId, new_parent: NodeId, new_name: Name<'_>) -> io::Result<EntryOut>;

    /// Opens a file. ENOSYS says, once and for all, that opening is not needed.
    fn open(&self, node: NodeId, args: &OpenIn) -> io::Result<OpenOut>;

    /// Makes a file if need be and opens it.
    fn create(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)>;

    /// Makes a file without a name in the directory `parent` and opens it (`O_TMPFILE`).
    fn tmpfile(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        Err(unsupported())
    }

    /// Reads at most `args.size` bytes straight into `data` and returns how many.
    ///
    /// EAGAIN if the read would wait for a disk in [`IoMode::NonBlocking`]; the content of `data`
    /// is then undefined.
    fn read(
        &self,
        node: NodeId,
        args: &ReadIn,
        data: &mut Writer<'_>,
        mode: IoMode,
    ) -> io::Result<usize>;

    /// Writes `args.size` bytes straight from `data` and returns how many.
    fn write(&self, node: NodeId, args: &WriteIn, data: &mut Reader<'_>) -> io::Result<usize>;

    /// Figures of the file system that holds `node`.
    fn statfs(&self, node: NodeId) -> io::Result<Kstatfs>;

    /// Closes a handle.
    fn release(&self, node: NodeId, args: &ReleaseIn) -> io::Result<()>;

    /// A guest process closes a descriptor of the handle. ENOSYS says, once and for all, that nothing depends on it.
    fn flush(&self, node: NodeId, handle: Handle, lock_owner: u64) -> io::Result<()> {
        Err(unsupported())
    }

    /// Brings data, and unless `data_only` all attributes, to stable storage.
    fn fsync(&self, node: NodeId, handle: Handle, data_only: bool) -> io::Result<()>;

    /// Sets an extended attribute.
    fn setxattr(
        &self,
        node: NodeId,
        args: &SetxattrIn,
        name: &CStr,
        value: &[u8],
    ) -> io::Result<()> {
        Err(unsupported())
    }

    /// Gets an extended attribute: its length; and its value, if `value` is not empty (ERANGE if it is too small).
    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> io::Result<usize> {
        Err(unsupported())
    }

    /// Gets the names of all extended attributes, each ended by a NUL, in the manner of [`FileSystem::getxattr`].
    fn listxattr(&self, node: NodeId, names: &mut [u8]) -> io::Result<usize> {
        Err(unsupported())
    }

    /// Removes an extended attribute.
    fn removexattr(&self, node: NodeId, name: &CStr) -> io::Result<()> {
        Err(unsupported())
    }

    /// Opens a directory. ENOSYS says, once and for all, that opening is not needed.
    fn opendir(&self, node: NodeId, args: &OpenIn) -> io::Result<OpenOut>;

    /// Lists a directory from the cookie `args.offset` on, as far as `entries` has room.
    fn readdir(
        &self,
        node: NodeId,
        args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()>;

    /// Like [`FileSystem::readdir`], with a look-up of each entry; one whose look-up fails is listed with node id 0.
    fn readdirplus(
        &self,
        node: NodeId,
        args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()>;

    /// Closes a directory handle.
    fn releasedir(&self, node: NodeId, args: &ReleaseIn) -> io::Result<()>;

    /// Brings a directory to stable storage.
    fn fsyncdir(&self, node: NodeId, handle: Handle, data_only: bool) -> io::Result<()>;

    /// Checks permission. ENOSYS says, once and for all, that the guest's own check is enough.
    fn access(&self, caller: Caller, node: NodeId, mask: u32) -> io::Result<()> {
        Err(unsupported())
    }

    /// Finds a lock that would conflict; of type `F_UNLCK` when there is none.
    fn getlk(&self, node: NodeId, args: &LkIn) -> io::Result<FileLock> {
        Err(unsupported())
    }

    /// Takes or gives back a lock: POSIX, or BSD (`flock`) where the flags say so.
    fn setlk(&self, node: NodeId, args: &LkIn, wait: LockWait<'_>) -> io::Result<()> {
        Err(unsupported())
    }

    /// Allocates, punches, zeroes, collapses or inserts a range. Set-id bits go unless `caller` may keep them, where
    /// [`InitFlags::HANDLE_KILLPRIV_V2`] was negotiated.
    fn fallocate(&self, caller: Caller, node: NodeId, args: &FallocateIn) -> io::Result<()> {
        Err(unsupported())
    }

    /// Finds data or a hole.
    fn lseek(&self, node: NodeId, args: &LseekIn) -> io::Result<u64> {
        Err(unsupported())
    }

    /// Copies from `node` to another file and returns how many bytes. For that file's set-id bits, see
    /// [`FileSystem::fallocate`].
    fn copy_file_range(
        &self,
        caller: Caller,
        node: NodeId,
        args: &CopyFileRangeIn,
    ) -> io::Result<u64> {
        Err(unsupported())
    }

    /// Brings the whole file system that holds `node` to stable storage.
    fn syncfs(&self, node: NodeId) -> io::Result<()> {
        Err(unsupported())
    }
}

/// The answer to what a file system does not do: the guest's kernel does not ask again.
fn unsupported() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSYS)
}
