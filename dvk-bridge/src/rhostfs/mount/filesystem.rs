//! Passes the kernel's requests to [`InodeOps`] and answers them.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use log::warn;
use parking_lot::{Mutex, MutexGuard};

use super::attributes::file_attr;
use super::inode_ops::{Changes, Creator, Extent, InodeOps};
use crate::abi::rhostfs::UsrStat;

/// Limit of a request's data in bytes. A request becomes many calls, and a longer one would delay
/// the others.
const MAX_IO_SIZE: u32 = 1 << 20;

/// [`InodeOps`] behind the kernel's requests.
pub(crate) struct Mounted {
    ops: Mutex<InodeOps>,
    /// How long the kernel may cache names and attributes.
    cache_timeout: Duration,
}

impl Mounted {
    /// Serves `ops`, whose files may change on the server. The kernel caches names and attributes
    /// for `cache_timeout`.
    pub(crate) const fn new(ops: InodeOps, cache_timeout: Duration) -> Self {
        Self {
            ops: Mutex::new(ops),
            cache_timeout,
        }
    }

    /// Locks the operations. A panic in a request leaves them as consistent as an error does.
    fn ops(&self) -> MutexGuard<'_, InodeOps> {
        self.ops.lock()
    }

    fn answer_entry(&self, reply: ReplyEntry, done: Result<(u64, UsrStat), rustix::io::Errno>) {
        match done {
            Ok((node, stat)) => {
                reply.entry(&self.cache_timeout, &file_attr(node, &stat), Generation(0));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn answer_attr(
        &self,
        reply: ReplyAttr,
        node: INodeNo,
        done: Result<UsrStat, rustix::io::Errno>,
    ) {
        match done {
            Ok(stat) => reply.attr(&self.cache_timeout, &file_attr(node.0, &stat)),
            Err(error) => reply.error(errno(error)),
        }
    }
}

impl Filesystem for Mounted {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // These features are optional. Without them the kernel drops pages less often or sends less
        // at once.
        for wanted in [
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            if let Err(lacking) = config.add_capabilities(wanted) {
                let names: Vec<&str> = lacking.iter_names().map(|(name, _)| name).collect();
                warn!("this kernel's FUSE lacks {}", names.join(", "));
            }
        }
        let _ = config.set_max_write(MAX_IO_SIZE);
        // rhostfs reports whole seconds. The kernel then keeps no fractions either, and times never
        // jump back.
        let _ = config.set_time_granularity(Duration::from_secs(1));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer_entry(reply, self.ops().look_up(parent.0, name));
    }

    fn forget(&self, _: &Request, node: INodeNo, times: u64) {
        self.ops().forget(node.0, times);
    }

    fn getattr(&self, _: &Request, node: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answer_attr(reply, node, self.ops().stat(node.0, fh.map(|fh| fh.0)));
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
        };
        let done = self.ops().change(node.0, fh.map(|fh| fh.0), &changes);
        self.answer_attr(reply, node, done);
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        match self.ops().read_link(node.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let done = self
            .ops()
            .make_node(parent.0, name, mode, rdev, creator(request));
        self.answer_entry(reply, done);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let done = self
            .ops()
            .make_directory(parent.0, name, mode, creator(request));
        self.answer_entry(reply, done);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.ops().unlink(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.ops().remove_directory(parent.0, name));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let done = self
            .ops()
            .make_link(parent.0, name, target, creator(request));
        self.answer_entry(reply, done);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = self
            .ops()
            .rename((parent.0, name), (new_parent.0, new_name), flags.bits());
        answer(reply, done);
    }

    fn link(
        &self,
        _: &Request,
        node: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        self.answer_entry(reply, self.ops().link(node.0, new_parent.0, new_name));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let done = self
            .ops()
            .create(parent.0, name, mode, flags, creator(request));
        match done {
            Ok((node, stat, fh)) => reply.created(
                &self.cache_timeout,
                &file_attr(node, &stat),
                Generation(0),
                FileHandle(fh),
                FopenFlags::empty(),
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.ops().open(node.0, flags.0) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // The kernel requests at most what was agreed.
        let size = usize::try_from(size.min(MAX_IO_SIZE)).unwrap_or(0);
        // Only a read past the page cache belongs to a process.
        let extent = match lock_owner {
            Some(_) => Extent::Any,
            None => Extent::Whole,
        };
        match self.ops().read(fh.0, offset, size, extent) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let extent = if write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            Extent::Whole
        } else {
            Extent::Any
        };
        match self.ops().write(fh.0, offset, data, extent) {
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// Every write reaches the server before it returns. A close reports the errors that the server
    /// found since.
    fn flush(
        &self,
        _: &Request,
        _node: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.ops().flush(fh.0));
    }

    fn release(
        &self,
        _: &Request,
        _node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.ops().close(fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        _node: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.ops().sync(fh.0, datasync));
    }

    fn opendir(&self, _: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.ops().open_directory(node.0) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _node: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let mut ops = self.ops();
        if offset == 0
            && let Err(error) = ops.rewind(fh.0)
        {
            return reply.error(errno(error));
        }
        let mut position = offset;
        loop {
            match ops.entry(fh.0, position) {
                Ok(Some(entry)) => {
                    if reply.add(INodeNo(entry.ino), entry.next, entry.kind, &entry.name) {
                        break;
                    }
                    position = entry.next;
                }
                Ok(None) => break,
                // The entries so far are sent first, and the next request meets the error again.
                Err(_) if position > offset => break,
                Err(error) => return reply.error(errno(error)),
            }
        }
        drop(ops);
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _node: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.ops().close_directory(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        node: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.ops().sync_directory(node.0, datasync));
    }

    fn statfs(&self, _: &Request, node: INodeNo, reply: ReplyStatfs) {
        match self.ops().file_system(node.0) {
            Ok(state) => reply.statfs(
                state.blocks.get(),
                state.bfree.get(),
                state.bavail.get(),
                state.files.get(),
                state.ffree.get(),
                state.bsize,
                state.namelen,
                state.frsize,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn access(&self, _: &Request, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        answer(reply, self.ops().access(node.0, mask.bits()));
    }
}

fn creator(request: &Request) -> Creator {
    Creator {
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn answer(reply: ReplyEmpty, done: Result<(), rustix::io::Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}
