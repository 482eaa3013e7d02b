//! One guest's view of the share: the nodes, handles and locks it holds, and the calls it makes.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::{
    AttrOut, CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, FileLock, Handle, InitFlags,
    Kstatfs, LkIn, LseekIn, NodeId, OpenIn, OpenOut, ReadIn, ReleaseIn, SetattrIn, SetxattrIn,
    StatxIn, StatxOut, WriteIn,
};

use super::attributes::Validity;
use super::budget::{Descriptor, Permit, Use, exhausted};
use super::content::Settled;
use super::directory::ListingBuffers;
use super::inodes::{Access, Inodes, Kind};
use super::locks::RangeLocks;
use super::lookup::Expectation;
use super::negotiation::Session;
use super::numbers::Numbers;
use super::open_files::OpenFiles;
use super::open_flags::GuestNumbering;
use super::places::Identity;
use super::share::Share;
use super::syncfs::SyncDirectories;
use crate::rate_limited;
use crate::session::{Caller, Creator, FileSystem, IoMode, LockWait, Name};
use crate::sys::buffers::{Reader, Writer};

/// One guest's file system: everything that guest holds, which goes when this is dropped.
#[derive(Debug)]
pub struct PassthroughFs {
    pub(super) share: Arc<Share>,
    pub(super) session: Session,
    pub(super) inodes: Arc<Inodes>,
    pub(super) files: OpenFiles,
    pub(super) listing_buffers: ListingBuffers,
    pub(super) range_locks: RangeLocks,
    pub(super) numbers: Numbers,
    pub(super) numbering: GuestNumbering,
    pub(super) validity: Validity,
    pub(super) expectation: Expectation,
    pub(super) settled: Settled,
    pub(super) sync_directories: SyncDirectories,
}

/// An inode in use by a request, with the descriptor that reaches it.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) kind: Kind,
    pub(super) identity: Identity,
    descriptor: Arc<Descriptor>,
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl PassthroughFs {
    /// A guest's file system, with nothing held yet.
    #[must_use]
    pub fn new(share: Arc<Share>) -> Self {
        let inodes = Arc::new(Inodes::default());
        share.register(&inodes);
        Self {
            session: Session::default(),
            inodes,
            files: OpenFiles::default(),
            listing_buffers: ListingBuffers::default(),
            range_locks: RangeLocks::default(),
            numbers: Numbers::default(),
            numbering: GuestNumbering::new(share.options.guest_arch),
            validity: Validity::new(&share.options),
            expectation: Expectation::default(),
            settled: Settled::default(),
            sync_directories: SyncDirectories::default(),
            share,
        }
    }

    /// Number of inodes that the guest holds, the root not counted.
    #[must_use]
    pub fn held_inodes(&self) -> usize {
        self.inodes.len()
    }

    /// Number of files and directories that the guest has open.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.files.len()
    }

    /// The inode of a node id, by the descriptor it has or is given now.
    ///
    /// # Errors
    /// ESTALE where the guest does not have it or it is gone, ENFILE.
    pub(super) fn node(&self, id: NodeId) -> io::Result<Node> {
        if id == NodeId::ROOT {
            return Ok(Node {
                id,
                kind: Kind::Directory,
                identity: self.share.root_identity,
                descriptor: Arc::clone(&self.share.root),
            });
        }
        let known = self.inodes.get(id)?;
        let descriptor = match known.access {
            Access::Descriptor(descriptor) => descriptor,
            Access::Recall(recall) => match self.share.find_again(known.identity, &recall) {
                Ok(descriptor) => self.inodes.hold(id, descriptor)?,
                // What cannot be found may still be open.
                Err(error) => self.files.any_of(id).ok_or(error)?,
            },
        };
        Ok(Node {
            id,
            kind: known.kind,
            identity: known.identity,
            descriptor,
        })
    }

    /// The directory of a node id.
    ///
    /// # Errors
    /// [`PassthroughFs::node`]'s; ENOTDIR.
    pub(super) fn directory(&self, id: NodeId) -> io::Result<Node> {
        let node = self.node(id)?;
        if node.kind == Kind::Directory {
            return Ok(node);
        }
        Err(io::Error::from_raw_os_error(libc::ENOTDIR))
    }

    /// The right to hold one more open file, or another descriptor that cannot be taken back.
    ///
    /// # Errors
    /// ENFILE where this guest has its part, or none can be had.
    pub(super) fn permit_open(&self) -> io::Result<Permit> {
        self.permit_fixed(Use::File)
    }

    /// Whether this guest has not had its part yet.
    pub(super) fn may_hold_inode(&self) -> bool {
        let (budget, account) = (&self.share.budget, self.inodes.account());
        if self.share.may_recall() {
            budget.may_pin(account)
        } else {
            budget.has_share_left(account)
        }
    }

    /// The right to hold one more inode by a descriptor.
    ///
    /// # Errors
    /// ENFILE where this guest has its part and cannot give up another, or none can be had.
    pub(super) fn permit_inode(&self) -> io::Result<Permit> {
        if !self.share.may_recall() {
            return self.permit_fixed(Use::Inode);
        }
        if !self.share.budget.may_pin(self.inodes.account()) {
            return Err(self.has_its_part());
        }
        self.share.permit()
    }

    fn permit_fixed(&self, purpose: Use) -> io::Result<Permit> {
        let account = self.inodes.account();
        let has_share_left = || self.share.budget.has_share_left(account);
        if !has_share_left() && (self.inodes.closed().close_all() == 0 || !has_share_left()) {
            return Err(self.has_its_part());
        }
        let permit = self.share.permit()?;
        permit.fix(account, purpose);
        Ok(permit)
    }

    fn has_its_part(&self) -> io::Error {
        rate_limited!(
            error,
            "a guest holds {} descriptors that cannot be given up, all that --rlimit-nofile leaves for it, and gets ENFILE",
            self.inodes.account().fixed()
        );
        exhausted()
    }

    /// Refuses a change of a read-only share.
    ///
    /// # Errors
    /// EROFS.
    pub(super) fn check_writable(&self) -> io::Result<()> {
        if self.share.options.readonly {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        Ok(())
    }

    fn free_all(&self) {
        self.range_locks.clear();
        self.files.clear();
        self.sync_directories.clear();
        self.inodes.clear();
    }
}

impl Drop for PassthroughFs {
    fn drop(&mut self) {
        self.free_all();
    }
}

impl FileSystem for PassthroughFs {
    fn init(&self, offered: InitFlags) -> InitFlags {
        self.free_all();
        self.numbering.forget();
        self.negotiate(offered)
    }

    fn destroy(&self) {
        self.free_all();
        self.session.end();
    }

    fn lookup(&self, parent: NodeId, name: Name<'_>) -> io::Result<EntryOut> {
        self.do_lookup(parent, name)
    }

    fn forget(&self, node: NodeId, count: u64) {
        // The root stays, however often the guest forgets it.
        if node != NodeId::ROOT {
            self.inodes.forget(node, count);
        }
    }

    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> io::Result<AttrOut> {
        self.do_getattr(node, handle)
    }

    fn statx(&self, node: NodeId, args: &StatxIn) -> io::Result<StatxOut> {
        self.do_statx(node, args)
    }

    fn setattr(&self, _caller: Caller, node: NodeId, args: &SetattrIn) -> io::Result<AttrOut> {
        self.do_setattr(node, args)
    }

    fn readlink(&self, node: NodeId, target: &mut [u8]) -> io::Result<usize> {
        self.do_readlink(node, target)
    }

    fn symlink(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        target: &CStr,
    ) -> io::Result<EntryOut> {
        self.do_symlink(creator, parent, name, target)
    }

    fn mknod(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        rdev: u32,
    ) -> io::Result<EntryOut> {
        self.do_mknod(creator, parent, name, mode, rdev)
    }

    fn mkdir(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
    ) -> io::Result<EntryOut> {
        self.do_mkdir(creator, parent, name, mode)
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> io::Result<()> {
        self.do_unlink(parent, name)
    }

    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> io::Result<()> {
        self.do_rmdir(parent, name)
    }

    fn rename(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        flags: u32,
    ) -> io::Result<()> {
        self.do_rename(creator, parent, name, new_parent, new_name, flags)
    }

    fn link(&self, node: NodeId, new_parent: NodeId, new_name: Name<'_>) -> io::Result<EntryOut> {
        self.do_link(node, new_parent, new_name)
    }

    fn open(&self, node: NodeId, args: &OpenIn) -> io::Result<OpenOut> {
        self.do_open(node, args)
    }

    fn create(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        name: Name<'_>,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        self.do_create(creator, parent, name, args)
    }

    fn tmpfile(
        &self,
        creator: &Creator<'_>,
        parent: NodeId,
        args: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        self.do_tmpfile(creator, parent, args)
    }

    fn read(
        &self,
        node: NodeId,
        args: &ReadIn,
        data: &mut Writer<'_>,
        mode: IoMode,
    ) -> io::Result<usize> {
        self.do_read(node, args, data, mode)
    }

    fn write(&self, node: NodeId, args: &WriteIn, data: &mut Reader<'_>) -> io::Result<usize> {
        self.do_write(node, args, data)
    }

    fn statfs(&self, node: NodeId) -> io::Result<Kstatfs> {
        self.do_statfs(node)
    }

    fn release(&self, node: NodeId, args: &ReleaseIn) -> io::Result<()> {
        self.do_release(node, args)
    }

    fn flush(&self, node: NodeId, handle: Handle, lock_owner: u64) -> io::Result<()> {
        self.do_flush(node, handle, lock_owner)
    }

    fn fsync(&self, node: NodeId, handle: Handle, data_only: bool) -> io::Result<()> {
        self.do_fsync(node, handle, data_only)
    }

    fn setxattr(
        &self,
        node: NodeId,
        args: &SetxattrIn,
        name: &CStr,
        value: &[u8],
    ) -> io::Result<()> {
        self.do_setxattr(node, args, name, value)
    }

    fn getxattr(&self, node: NodeId, name: &CStr, value: &mut [u8]) -> io::Result<usize> {
        self.do_getxattr(node, name, value)
    }

    fn listxattr(&self, node: NodeId, names: &mut [u8]) -> io::Result<usize> {
        self.do_listxattr(node, names)
    }

    fn removexattr(&self, node: NodeId, name: &CStr) -> io::Result<()> {
        self.do_removexattr(node, name)
    }

    fn opendir(&self, node: NodeId, args: &OpenIn) -> io::Result<OpenOut> {
        self.do_opendir(node, args)
    }

    fn readdir(
        &self,
        node: NodeId,
        args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()> {
        self.do_readdir(node, args, entries)
    }

    fn readdirplus(
        &self,
        node: NodeId,
        args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()> {
        self.do_readdirplus(node, args, entries)
    }

    fn releasedir(&self, node: NodeId, args: &ReleaseIn) -> io::Result<()> {
        self.do_release(node, args)
    }

    fn fsyncdir(&self, node: NodeId, handle: Handle, data_only: bool) -> io::Result<()> {
        self.do_fsync(node, handle, data_only)
    }

    fn getlk(&self, node: NodeId, args: &LkIn) -> io::Result<FileLock> {
        self.do_getlk(node, args)
    }

    fn setlk(&self, node: NodeId, args: &LkIn, wait: LockWait<'_>) -> io::Result<()> {
        self.do_setlk(node, args, wait)
    }

    fn fallocate(&self, caller: Caller, node: NodeId, args: &FallocateIn) -> io::Result<()> {
        self.do_fallocate(caller, node, args)
    }

    fn lseek(&self, node: NodeId, args: &LseekIn) -> io::Result<u64> {
        self.do_lseek(node, args)
    }

    fn copy_file_range(
        &self,
        caller: Caller,
        node: NodeId,
        args: &CopyFileRangeIn,
    ) -> io::Result<u64> {
        self.do_copy_file_range(caller, node, args)
    }

    fn syncfs(&self, node: NodeId) -> io::Result<()> {
        self.do_syncfs(node)
    }
}
