//! The interface between the FUSE session and a file system.
//!
//! Each family of operations is a trait of its own, so that a file system can implement it in the
//! module that does the work. [`FileSystem`] is all of them.
//!
//! For all families: errors are errno values in [`io::Error`] and reach the guest, with the
//! exceptions of `host_errors`. Names
//! are validated as single components. Node ids and handles are not validated; unknown ones give
//! ESTALE and EBADF. Each [`EntryOut`] with a node id other than 0 counts as one lookup, which
//! [`Lookup::forget`] undoes. Flags have the values of the guest's architecture. A default method
//! returns [`not_offered`], after which the guest's kernel does not send the request again.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use gangplank_fuse::{
    AttrOut, CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, FileLock, Handle, InitFlags,
    IoctlIn, Kstatfs, LkIn, LseekIn, NodeId, OpenIn, OpenOut, ReadIn, ReleaseIn, SetattrIn,
    SetxattrIn, StatxIn, StatxOut, WriteIn,
};

use gangplank_fuse::dir::DirentWriter;

pub use super::caller::{Caller, Creator, GuestGid, GuestUid};
use super::events::Change;
use super::host_errors::not_offered;
use super::name::Name;
use crate::device::request::IoMode;
use crate::state::migration::{GuestState, MigratedGuest, TransferError};
use crate::sys::buffers::{Reader, Writer};
use crate::sys::interrupt::Interruption;

/// What to do if another owner holds the lock.
#[derive(Debug, Clone, Copy)]
pub enum LockWait<'a> {
    /// Return EAGAIN.
    No,
    /// Wait until the lock is free, or return EINTR once interrupted.
    UntilFree(&'a Interruption),
}

/// A guest's file system: all families of operations. Several threads call it at once.
pub trait FileSystem:
    SessionLifecycle
    + Lookup
    + Attributes
    + Namespace
    + Files
    + FileData
    + FileRanges
    + Directories
    + Xattrs
    + Ioctls
    + FileLocks
    + Superblock
    + Migration
    + Changes
    + Send
    + Sync
{
}

impl<T> FileSystem for T where
    T: SessionLifecycle
        + Lookup
        + Attributes
        + Namespace
        + Files
        + FileData
        + FileRanges
        + Directories
        + Xattrs
        + Ioctls
        + FileLocks
        + Superblock
        + Migration
        + Changes
        + Send
        + Sync
{
}

/// Start and end of a session: INIT and DESTROY.
pub trait SessionLifecycle {
    /// Starts the session. Gets the flags that the guest's kernel offers and returns those that the
    /// file system accepts. The session negotiates transport flags (message sizes) itself.
    ///
    /// # Errors
    /// The guest's kernel does not support what the operator requires.
    fn init(&self, offered: InitFlags) -> io::Result<InitFlags>;

    /// Continues the session that the worker before has left, which began with these flags. Returns
    /// what [`SessionLifecycle::init`] returned then.
    ///
    /// # Errors
    /// As [`SessionLifecycle::init`].
    fn resume(&self, offered: InitFlags) -> io::Result<InitFlags> {
        self.init(offered)
    }

    /// Ends the session: frees all node ids, handles and locks. [`SessionLifecycle::init`] may
    /// follow.
    fn destroy(&self);

    /// The users who may own what a request of this guest's user has made: those as whom the
    /// daemon may have acted, as the guest sees them.
    fn possible_owners(&self, caller: GuestUid) -> [GuestUid; 2] {
        // A daemon that may not act as others creates everything as its own user.
        let own_uid = rustix::process::geteuid().as_raw();
        [caller, GuestUid::new(own_uid)]
    }

    /// Closes a handle that the guest has never been told of, if there is one.
    #[allow(unused_variables)]
    fn abandon(&self, handle: Handle) {}
}

/// A guest that leaves for another daemon, or arrives from one, while none of its requests runs.
pub trait Migration {
    /// What another daemon needs to know of the guest, apart from the session. Changes nothing.
    ///
    /// # Errors
    /// The guest cannot leave.
    fn save(&self) -> Result<GuestState, TransferError> {
        Err(TransferError::Unsupported)
    }

    /// Takes over a guest, in place of all that was held so far. [`SessionLifecycle::resume`] comes
    /// before.
    ///
    /// # Errors
    /// The guest cannot arrive. Then nothing is held.
    #[allow(unused_variables)]
    fn load(&self, guest: &MigratedGuest) -> Result<(), TransferError> {
        Err(TransferError::Unsupported)
    }
}

/// Changes that others make to the directories that the guest knows (`--events`).
pub trait Changes {
    /// Begins to collect changes, of the directories that the guest knows now and will learn of.
    ///
    /// # Errors
    /// EOPNOTSUPP: changes cannot be heard of here.
    fn watch(&self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    /// Collects no changes any more.
    fn unwatch(&self) {}

    /// What becomes readable when there are changes, from the first [`Changes::watch`] on.
    fn changes_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Takes the changes that were collected, in their order.
    #[allow(unused_variables)]
    fn take_changes(&self, tell: &mut dyn FnMut(Change<'_>)) {}

    /// The entry of a node that the guest knows, as of a lookup.
    #[allow(unused_variables)]
    fn known_entry(&self, node: NodeId) -> io::Result<EntryOut> {
        Err(io::Error::from_raw_os_error(libc::ESTALE))
    }
}

/// LOOKUP and FORGET.
pub trait Lookup {
    /// Finds `name` in `parent`. A reply with node id 0 is a negative entry, which the guest may
    /// cache for the entry's timeout.
    fn lookup(&self, parent: NodeId, name: Name<'_>) -> io::Result<EntryOut>;

    /// Undoes `count` lookups of `node`. Unknown nodes and excessive counts are logged and have no
    /// other effect.
    fn forget(&self, node: NodeId, count: u64);

    /// Looks for the inode of a node whose storage calls it stale, by its name. Returns whether it
    /// is there, and the node has a descriptor of it again.
    #[allow(unused_variables)]
    fn find_again(&self, node: NodeId) -> bool {
        false
    }
}

/// GETATTR, STATX, SETATTR and ACCESS.
#[allow(unused_variables)]
pub trait Attributes {
    /// Reads the attributes, through `handle` if the guest names one.
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> io::Result<AttrOut>;

    /// Reads the attributes of `statx(2)`, including the birth time.
    fn statx(&self, node: NodeId, args: &StatxIn) -> io::Result<StatxOut> {
        Err(unsupported())
    }

    /// Changes attributes: mode, owner, size, times.
    fn setattr(&self, caller: Caller, node: NodeId, args: &SetattrIn) -> io::Result<AttrOut>;

    /// Checks permissions. ENOSYS leaves all checks to the guest's kernel.
    fn access(&self, caller: Caller, node: NodeId, mask: u32) -> io::Result<()> {
        Err(unsupported())
    }
}

/// Creating, removing and renaming directory entries.
pub trait Namespace {
    /// Reads a symbolic link's target into `target`, which has room for the longest one, and
    /// returns its length.
    fn readlink(&self, node: NodeId, target: &mut [u8]) -> io::Result<usize>;

    /// Creates a symbolic link.
    fn symlink(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        target: &CStr,
    ) -> io::Result<EntryOut>;

    /// Creates a file, device node, FIFO or socket.
    fn mknod(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        rdev: u32,
    ) -> io::Result<EntryOut>;

    /// Creates a directory.
    fn mkdir(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
    ) -> io::Result<EntryOut>;

    /// Completes an object that an earlier process has made for `creator` before it died: gives it
    /// what it does not have yet. Returns whether its attributes may have changed.
    ///
    /// `mode` is that of the request, with the type.
    #[allow(unused_variables)]
    fn complete(
        &self,
        parent: NodeId,
        node: NodeId,
        creator: &Creator<'_>,
        mode: u32,
    ) -> io::Result<bool> {
        Ok(false)
    }

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

    /// Adds a name to `node`.
    fn link(&self, node: NodeId, new_parent: NodeId, new_name: Name<'_>) -> io::Result<EntryOut>;
}

/// Opening, creating and closing files.
#[allow(unused_variables)]
pub trait Files {
    /// Opens a file. ENOSYS lets the guest use all files without OPEN
    /// ([`InitFlags::NO_OPEN_SUPPORT`]).
    fn open(&self, node: NodeId, args: &OpenIn) -> io::Result<OpenOut>;

    /// Creates a file if it does not exist, and opens it.
    fn create(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)>;

    /// Creates a file without a name in the directory `parent` and opens it (`O_TMPFILE`).
    fn tmpfile(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        Err(unsupported())
    }

    /// Closes a handle.
    fn release(&self, node: NodeId, args: &ReleaseIn) -> io::Result<()>;

    /// A guest process closes one of the descriptors of a handle. ENOSYS stops all further FLUSH
    /// requests of the mount.
    fn flush(&self, node: NodeId, handle: Handle, lock_owner: u64) -> io::Result<()> {
        Err(unsupported())
    }

    /// Writes data, and all attributes unless `data_only`, to stable storage.
    fn fsync(&self, node: NodeId, handle: Handle, data_only: bool) -> io::Result<()>;
}

/// READ and WRITE.
pub trait FileData {
    /// Reads at most `args.size` bytes directly into `data` and returns their number.
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

    /// Writes `args.size` bytes directly from `data` and returns their number.
    fn write(&self, node: NodeId, args: &WriteIn, data: &mut Reader<'_>) -> io::Result<usize>;

    /// Writes at the end of the file what an earlier process may have written already, as far as it
    /// is not there, and returns the number of bytes that are.
    fn append_again(
        &self,
        node: NodeId,
        args: &WriteIn,
        data: &mut Reader<'_>,
    ) -> io::Result<usize> {
        self.write(node, args, data)
    }
}

/// FALLOCATE, LSEEK and COPY_FILE_RANGE.
#[allow(unused_variables)]
pub trait FileRanges {
    /// Allocates, punches, zeroes, collapses or inserts a range. If
    /// [`InitFlags::HANDLE_KILLPRIV_V2`] was negotiated, clears set-id bits unless `caller` may
    /// keep them.
    fn fallocate(&self, caller: Caller, node: NodeId, args: &FallocateIn) -> io::Result<()> {
        Err(unsupported())
    }

    /// Finds the next data or hole.
    fn lseek(&self, node: NodeId, args: &LseekIn) -> io::Result<u64> {
        Err(unsupported())
    }

    /// Copies from `node` to another file and returns the number of bytes. Treats the target's
    /// set-id bits like [`FileRanges::fallocate`].
    fn copy_file_range(
        &self,
        caller: Caller,
        node: NodeId,
        args: &CopyFileRangeIn,
    ) -> io::Result<u64> {
        Err(unsupported())
    }
}

/// Opening, listing and closing directories.
pub trait Directories {
    /// Opens a directory. ENOSYS lets the guest use all directories without OPENDIR
    /// ([`InitFlags::NO_OPENDIR_SUPPORT`]).
    fn opendir(&self, node: NodeId, args: &OpenIn) -> io::Result<OpenOut>;

    /// Lists a directory from the cookie `args.offset` on, as far as `entries` has room.
    fn readdir(
        &self,
        node: NodeId,
        args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()>;

    /// Like [`Directories::readdir`], with a lookup of each entry. An entry whose lookup fails has
    /// node id 0.
    fn readdirplus(
        &self,
        node: NodeId,
        args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()>;

    /// Closes a directory handle.
    fn releasedir(&self, node: NodeId, args: &ReleaseIn) -> io::Result<()>;

    /// Writes a directory to stable storage.
    fn fsyncdir(&self, node: NodeId, handle: Handle, data_only: bool) -> io::Result<()>;
}

/// Extended attributes.
#[allow(unused_variables)]
pub trait Xattrs {
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

    /// Reads an extended attribute into `value` and returns its length. With an empty `value`
    /// returns only the length; ERANGE if `value` is too small.
    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> io::Result<usize> {
        Err(unsupported())
    }

    /// Reads the names of all extended attributes, each terminated by a NUL. `names` is used like
    /// the value of [`Xattrs::getxattr`].
    fn listxattr(&self, node: NodeId, names: &mut [u8]) -> io::Result<usize> {
        Err(unsupported())
    }

    /// Removes an extended attribute.
    fn removexattr(&self, node: NodeId, name: &CStr) -> io::Result<()> {
        Err(unsupported())
    }
}

/// ioctl(2) commands.
#[allow(unused_variables)]
pub trait Ioctls {
    /// Carries out a command with `input`, puts its result into `output`, which has the length that
    /// the guest asks for, and returns the result's length. ENOTTY for an unknown command.
    fn ioctl(
        &self,
        caller: Caller,
        node: NodeId,
        args: &IoctlIn,
        input: &[u8],
        output: &mut [u8],
    ) -> io::Result<usize> {
        Err(io::Error::from_raw_os_error(libc::ENOTTY))
    }
}

/// Advisory locks.
#[allow(unused_variables)]
pub trait FileLocks {
    /// Finds a conflicting lock. The type of the result is `F_UNLCK` if there is none.
    fn getlk(&self, node: NodeId, args: &LkIn) -> io::Result<FileLock> {
        Err(unsupported())
    }

    /// Takes or releases a POSIX lock, or a BSD lock (`flock`) if the flags say so.
    fn setlk(&self, node: NodeId, args: &LkIn, wait: LockWait<'_>) -> io::Result<()> {
        Err(unsupported())
    }
}

/// Operations on a whole file system: STATFS and SYNCFS.
#[allow(unused_variables)]
pub trait Superblock {
    /// Statistics of the file system that holds `node`.
    fn statfs(&self, node: NodeId) -> io::Result<Kstatfs>;

    /// Writes the file system that holds `node` to stable storage.
    fn syncfs(&self, node: NodeId) -> io::Result<()> {
        Err(unsupported())
    }
}

/// The guest's kernel does not send this request again.
fn unsupported() -> io::Error {
    not_offered()
}
