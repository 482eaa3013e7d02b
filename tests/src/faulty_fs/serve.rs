//! Serves the kernel's requests by the rules.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;

use super::rules::{Call, Short};
use super::transfers::index;
use super::tree::ROOT;
use super::{Control, HostWrites};

/// The kernel caches no names and attributes: every request meets the faults, and the test may
/// change files.
const TTL: Duration = Duration::ZERO;

/// Limit of a transfer, in bytes.
const MAX_TRANSFER: u32 = 1 << 20;

/// The file system, for fuser.
pub(super) struct Served {
    pub(super) control: Control,
    writes: HostWrites,
}

impl Served {
    pub(super) const fn new(control: Control, writes: HostWrites) -> Self {
        Self { control, writes }
    }

    /// Counts a request on a node, which a rule may fail.
    pub(super) fn check(&self, call: Call, node: INodeNo) -> Result<(), Errno> {
        let name = self.control.tree().name(node.0);
        self.control.rules().check(call, &name)
    }

    fn open_flags(&self) -> FopenFlags {
        if self.control.is_direct() {
            FopenFlags::FOPEN_DIRECT_IO
        } else {
            FopenFlags::empty()
        }
    }
}

/// Converts an errno for fuser.
fn failure(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

/// Replies with a value, or with its length if the caller asked for that.
fn reply_xattr(reply: ReplyXattr, room: u32, value: Result<Vec<u8>, Errno>) {
    match value {
        Ok(value) if room == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() <= index(room.into()) => reply.data(&value),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(errno) => reply.error(failure(errno)),
    }
}

fn reply_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(failure(errno)),
    }
}

fn time(wanted: TimeOrNow) -> SystemTime {
    match wanted {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_PARALLEL_DIROPS;
        if self.writes == HostWrites::Back {
            wanted |= InitFlags::FUSE_WRITEBACK_CACHE;
        }
        config
            .add_capabilities(wanted)
            .map_err(|missing| io::Error::other(format!("this kernel lacks {missing:?}")))?;
        config
            .set_max_write(MAX_TRANSFER)
            .map_err(|nearest| io::Error::other(format!("at most {nearest} bytes a write")))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let text = name.to_string_lossy();
        if parent.0 == ROOT && self.control.pull(&text) {
            return reply.error(fuser::Errno::ENOENT);
        }
        let found = self.control.rules().check(Call::Lookup, &text);
        let found = found.and_then(|()| {
            let tree = self.control.tree();
            tree.attributes(tree.lookup(parent.0, name)?)
        });
        match found {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attributes = self
            .check(Call::Getattr, node)
            .and_then(|()| self.control.tree().attributes(node.0));
        match attributes {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = || {
            self.check(Call::Setattr, ino)?;
            let mut tree = self.control.tree();
            let node = tree.node_mut(ino.0)?;
            if let Some(size) = size {
                node.resize(size)?;
            }
            if let Some(mode) = mode {
                node.mode = u16::try_from(mode & 0o7777).unwrap_or(0);
            }
            node.uid = uid.unwrap_or(node.uid);
            node.gid = gid.unwrap_or(node.gid);
            node.atime = atime.map_or(node.atime, time);
            node.mtime = mtime.map_or(node.mtime, time);
            node.ctime = SystemTime::now();
            tree.attributes(ino.0)
        };
        match change() {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let make = || {
            let rules = self.control.rules();
            rules.check(Call::Mkdir, &name.to_string_lossy())?;
            let mut tree = self.control.tree();
            let number = tree.make(parent.0, name, FileType::Directory, mode & !umask)?;
            tree.attributes(number)
        };
        match make() {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let rules = self.control.rules();
        let checked = rules.check(Call::Unlink, &name.to_string_lossy());
        let result = checked.and_then(|()| self.control.tree().unlink(parent.0, name));
        reply_empty(reply, result);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let rules = self.control.rules();
        let checked = rules.check(Call::Rmdir, &name.to_string_lossy());
        let result = checked.and_then(|()| self.control.tree().rmdir(parent.0, name));
        reply_empty(reply, result);
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
        let rename = || {
            let rules = self.control.rules();
            rules.check(Call::Rename, &name.to_string_lossy())?;
            let mut tree = self.control.tree();
            if flags.contains(RenameFlags::RENAME_NOREPLACE)
                && tree.lookup(new_parent.0, new_name).is_ok()
            {
                return Err(Errno::EXIST);
            }
            if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
                return Err(Errno::INVAL);
            }
            tree.rename((parent.0, name), (new_parent.0, new_name))
        };
        reply_empty(reply, rename());
    }

    fn open(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self
            .check(Call::Open, node)
            .and_then(|()| self.control.tree().opened(node.0));
        match opened {
            Ok(()) => reply.opened(FileHandle(node.0), self.open_flags()),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let create = || {
            let rules = self.control.rules();
            rules.check(Call::Create, &name.to_string_lossy())?;
            let mut tree = self.control.tree();
            let number = tree.make(parent.0, name, FileType::RegularFile, mode & !umask)?;
            tree.opened(number)?;
            tree.attributes(number)
        };
        match create() {
            Ok(attributes) => {
                let handle = FileHandle(attributes.ino.0);
                let flags = self.open_flags();
                reply.created(&TTL, &attributes, Generation(0), handle, flags);
            }
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // Reads that bypass the page cache have an owner (FUSE_READ_LOCKOWNER).
        let short = match lock_owner {
            Some(_) => Short::Allowed,
            None => Short::Refused,
        };
        match self.read_bytes(node, offset, size, short) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn write(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let short = if flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            Short::Refused
        } else {
            Short::Allowed
        };
        match self.write_bytes(node, offset, data, short) {
            Ok(count) => reply.written(count),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn flush(&self, _: &Request, node: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply_empty(reply, self.check(Call::Flush, node));
    }

    fn release(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.control.tree().released(node.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.check(Call::Fsync, node));
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.check(Call::Fsync, node));
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.check(Call::Opendir, node) {
            Ok(()) => reply.opened(FileHandle(node.0), FopenFlags::empty()),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.fill(node, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn statfs(&self, _: &Request, node: INodeNo, reply: ReplyStatfs) {
        match self.check(Call::Statfs, node) {
            Ok(()) => reply.statfs(1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn setxattr(
        &self,
        _: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let set = || {
            self.check(Call::Setxattr, node)?;
            let mut tree = self.control.tree();
            let xattrs = &mut tree.node_mut(node.0)?.xattrs;
            xattrs.insert(name.to_owned(), value.to_vec());
            Ok(())
        };
        reply_empty(reply, set());
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let get = || {
            // The kernel reads these itself, before writes and to check permissions.
            if name.as_bytes().starts_with(b"user.") {
                self.check(Call::Getxattr, node)?;
            }
            let tree = self.control.tree();
            let value = tree.node(node.0)?.xattrs.get(name);
            value.cloned().ok_or(Errno::NODATA)
        };
        reply_xattr(reply, size, get());
    }

    fn listxattr(&self, _: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let list = || {
            self.check(Call::Listxattr, node)?;
            let tree = self.control.tree();
            let names = tree.node(node.0)?.xattrs.keys();
            let terminated = names.flat_map(|name| [name.as_bytes(), b"\0"].concat());
            Ok(terminated.collect())
        };
        reply_xattr(reply, size, list());
    }

    fn removexattr(&self, _: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || {
            self.check(Call::Removexattr, node)?;
            let mut tree = self.control.tree();
            let removed: Option<Vec<u8>> =
                tree.node_mut(node.0)?.xattrs.remove(&OsString::from(name));
            removed.map(drop).ok_or(Errno::NODATA)
        };
        reply_empty(reply, remove());
    }

    fn fallocate(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.allocate(node, offset, length, mode));
    }

    fn lseek(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = || {
            self.check(Call::Lseek, node)?;
            let size = self.control.tree().attributes(node.0)?.size;
            let size = i64::try_from(size).map_err(|_| Errno::OVERFLOW)?;
            // A file is data from its beginning to its end.
            match whence {
                _ if offset < 0 || offset >= size => Err(Errno::NXIO),
                libc::SEEK_DATA => Ok(offset),
                libc::SEEK_HOLE => Ok(size),
                _ => Err(Errno::INVAL),
            }
        };
        match seek() {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(failure(errno)),
        }
    }

    fn copy_file_range(
        &self,
        _: &Request,
        source: INodeNo,
        _: FileHandle,
        from: u64,
        target: INodeNo,
        _: FileHandle,
        to: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        match self.copy_bytes((source, from), (target, to), length) {
            Ok(count) => reply.written(count),
            Err(errno) => reply.error(failure(errno)),
        }
    }
}
