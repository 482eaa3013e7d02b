//! One function for each common operation.

use std::ffi::CStr;

use gangplank_fuse::dir::{DirentplusRef, Direntplusses, Dirents};
use gangplank_fuse::{
    AttrOut, BatchForget, CreateIn, EntryOut, FileLock, FlushIn, ForgetIn, ForgetOne, FsyncIn,
    GetattrFlags, GetattrIn, Handle, InitIn, InitOut, InterruptIn, IoctlIn, IoctlOut,
    KERNEL_MINOR_VERSION, KERNEL_VERSION, LkIn, MkdirIn, NodeId, OpenIn, OpenOut, Operation,
    ReadIn, ReleaseIn, Rename2In, SetattrIn, Unique, WriteIn, reply,
};
use rustix::fs::OFlags;

use super::error::Result;
use super::{Driver, Notifier, Ticket};

/// Room for a reply that has structures only, in bytes.
const STRUCTURES: usize = 512;

/// A node and an open file of it.
#[derive(Clone, Copy, Debug)]
pub struct NodeAndFile {
    /// The node.
    pub node: NodeId,
    /// The open file.
    pub file: Handle,
}

/// A name and its node; node ID zero if it was not looked up.
pub type NameAndNode = (Vec<u8>, NodeId);

impl<L: Notifier> Driver<L> {
    /// Opens the session as Linux 6.18 does.
    ///
    /// # Errors
    /// The daemon's errno, or why there is none. This holds for all below.
    pub fn init(&mut self) -> Result<InitOut> {
        let mut asked = InitIn {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            max_readahead: 128 * 1024,
            ..InitIn::default()
        };
        asked.set_features(self.offer);
        let payload = self.call(NodeId::default(), Operation::Init(asked), &[], STRUCTURES)?;
        let answer = reply::decode_init(&payload)?;
        self.dialect = answer.dialect(&asked);
        Ok(answer)
    }

    /// DESTROY: ends the session but not the connection.
    pub fn destroy(&mut self) -> Result<()> {
        self.done(NodeId::default(), Operation::Destroy)
    }

    /// LOOKUP. A node ID of zero means that the name does not exist.
    pub fn lookup(&mut self, parent: NodeId, name: &CStr) -> Result<EntryOut> {
        self.entry(parent, Operation::Lookup { name })
    }

    /// FORGET, through the high-priority queue.
    pub fn forget(&mut self, node: NodeId, count: u64) -> Result<()> {
        let operation = Operation::Forget(ForgetIn { nlookup: count });
        let ticket = self.submit(0, node, operation, &[], 0)?;
        self.finish(ticket).map(|_| ())
    }

    /// BATCH_FORGET, through the high-priority queue.
    pub fn batch_forget(&mut self, nodes: &[ForgetOne]) -> Result<()> {
        let operation = Operation::BatchForget(BatchForget::new(nodes));
        let ticket = self.submit(0, NodeId::default(), operation, &[], 0)?;
        self.finish(ticket).map(|_| ())
    }

    /// INTERRUPT, through the high-priority queue.
    pub fn interrupt(&mut self, unique: Unique) -> Result<()> {
        let unique = unique.get();
        let operation = Operation::Interrupt(InterruptIn { unique });
        let ticket = self.submit(0, NodeId::default(), operation, &[], 0)?;
        self.finish(ticket).map(|_| ())
    }

    /// GETATTR.
    pub fn getattr(&mut self, node: NodeId, file: Option<Handle>) -> Result<AttrOut> {
        let flags = file.map_or(GetattrFlags::empty(), |_| GetattrFlags::FH);
        let operation = Operation::Getattr(GetattrIn {
            getattr_flags: flags.bits(),
            dummy: 0,
            fh: file.unwrap_or_default().get(),
        });
        let payload = self.call(node, operation, &[], STRUCTURES)?;
        Ok(reply::decode_attr(&payload)?)
    }

    /// SETATTR.
    pub fn setattr(&mut self, node: NodeId, args: SetattrIn) -> Result<AttrOut> {
        let payload = self.call(node, Operation::Setattr(args), &[], STRUCTURES)?;
        Ok(reply::decode_attr(&payload)?)
    }

    /// OPEN.
    pub fn open(&mut self, node: NodeId, flags: OFlags) -> Result<Handle> {
        self.opened(node, Operation::Open(open_in(flags)))
    }

    /// OPENDIR.
    pub fn opendir(&mut self, node: NodeId) -> Result<Handle> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.opened(node, Operation::Opendir(open_in(flags)))
    }

    /// CREATE, opened for reading and writing.
    pub fn create(&mut self, parent: NodeId, name: &CStr, mode: u32) -> Result<NodeAndFile> {
        let args = CreateIn {
            flags: (OFlags::CREATE | OFlags::RDWR | OFlags::LARGEFILE).bits(),
            mode: 0o100_000 | mode,
            umask: 0o022,
            open_flags: 0,
        };
        let operation = Operation::Create { args, name };
        let payload = self.call(parent, operation, &[], STRUCTURES)?;
        let (entry, opened) = reply::decode_create(&payload)?;
        Ok(NodeAndFile {
            node: NodeId::new(entry.nodeid),
            file: Handle::new(opened.fh),
        })
    }

    /// READ.
    pub fn read(&mut self, from: NodeAndFile, offset: u64, size: u32) -> Result<Vec<u8>> {
        let operation = Operation::Read(read_in(from.file, offset, size));
        self.call(from.node, operation, &[], to_len(size))
    }

    /// WRITE. Returns the number of bytes written.
    pub fn write(&mut self, to: NodeAndFile, offset: u64, data: &[u8]) -> Result<u32> {
        let operation = Operation::Write(WriteIn {
            fh: to.file.get(),
            offset,
            size: u32::try_from(data.len()).unwrap_or(u32::MAX),
            ..WriteIn::default()
        });
        let payload = self.call(to.node, operation, data, STRUCTURES)?;
        Ok(reply::decode_write(&payload)?.size)
    }

    /// RELEASE.
    pub fn release(&mut self, what: NodeAndFile) -> Result<()> {
        self.done(what.node, Operation::Release(release_in(what.file)))
    }

    /// RELEASEDIR.
    pub fn releasedir(&mut self, node: NodeId, file: Handle) -> Result<()> {
        self.done(node, Operation::Releasedir(release_in(file)))
    }

    /// FLUSH.
    pub fn flush(&mut self, what: NodeAndFile) -> Result<()> {
        let args = FlushIn {
            fh: what.file.get(),
            ..FlushIn::default()
        };
        self.done(what.node, Operation::Flush(args))
    }

    /// FSYNC.
    pub fn fsync(&mut self, what: NodeAndFile) -> Result<()> {
        let args = FsyncIn {
            fh: what.file.get(),
            ..FsyncIn::default()
        };
        self.done(what.node, Operation::Fsync(args))
    }

    /// IOCTL, with room for `room` bytes of the command's output.
    pub fn ioctl(
        &mut self,
        what: NodeAndFile,
        cmd: u32,
        input: &[u8],
        room: usize,
    ) -> Result<Vec<u8>> {
        let args = IoctlIn {
            fh: what.file.get(),
            cmd,
            in_size: u32::try_from(input.len()).unwrap_or(0),
            out_size: u32::try_from(room).unwrap_or(0),
            ..IoctlIn::default()
        };
        let header = size_of::<IoctlOut>();
        let mut reply = self.call(what.node, Operation::Ioctl(args), input, header + room)?;
        Ok(reply.split_off(header.min(reply.len())))
    }

    /// MKDIR.
    pub fn mkdir(&mut self, parent: NodeId, name: &CStr) -> Result<EntryOut> {
        let args = MkdirIn {
            mode: 0o755,
            umask: 0o022,
        };
        self.entry(parent, Operation::Mkdir { args, name })
    }

    /// SYMLINK.
    pub fn symlink(&mut self, parent: NodeId, name: &CStr, target: &CStr) -> Result<EntryOut> {
        self.entry(parent, Operation::Symlink { name, target })
    }

    /// READLINK.
    pub fn readlink(&mut self, node: NodeId) -> Result<Vec<u8>> {
        self.call(node, Operation::Readlink, &[], 4096)
    }

    /// UNLINK.
    pub fn unlink(&mut self, parent: NodeId, name: &CStr) -> Result<()> {
        self.done(parent, Operation::Unlink { name })
    }

    /// RMDIR.
    pub fn rmdir(&mut self, parent: NodeId, name: &CStr) -> Result<()> {
        self.done(parent, Operation::Rmdir { name })
    }

    /// RENAME2, with the `RENAME_*` flags of renameat2(2).
    pub fn rename(
        &mut self,
        (parent, name): (NodeId, &CStr),
        (new_parent, new_name): (NodeId, &CStr),
        flags: u32,
    ) -> Result<()> {
        let args = Rename2In {
            newdir: new_parent.get(),
            flags,
            padding: 0,
        };
        let operation = Operation::Rename2 {
            args,
            name,
            new_name,
        };
        self.done(parent, operation)
    }

    /// READDIRPLUS: the names that one reply of `size` bytes holds, each with its node, and the
    /// offset behind the last.
    pub fn readdirplus(
        &mut self,
        node: NodeId,
        file: Handle,
        offset: u64,
        size: u32,
    ) -> Result<(Vec<NameAndNode>, u64)> {
        let operation = Operation::Readdirplus(read_in(file, offset, size));
        let payload = self.call(node, operation, &[], to_len(size))?;
        let mut last = offset;
        let mut names = Vec::new();
        for entry in Direntplusses::new(&payload) {
            let DirentplusRef {
                entry_out,
                dirent,
                name,
            } = entry?;
            last = dirent.off;
            names.push((name.to_vec(), NodeId::new(entry_out.nodeid)));
        }
        Ok((names, last))
    }

    /// READDIR: the names that one reply of `size` bytes holds, and the offset behind the last.
    pub fn readdir(
        &mut self,
        node: NodeId,
        file: Handle,
        offset: u64,
        size: u32,
    ) -> Result<(Vec<Vec<u8>>, u64)> {
        let operation = Operation::Readdir(read_in(file, offset, size));
        let payload = self.call(node, operation, &[], to_len(size))?;
        let mut last = offset;
        let mut names = Vec::new();
        for entry in Dirents::new(&payload) {
            let entry = entry?;
            last = entry.dirent.off;
            names.push(entry.name.to_vec());
        }
        Ok((names, last))
    }

    /// SETLK: takes or drops a POSIX lock on the whole file.
    pub fn setlk(&mut self, what: NodeAndFile, owner: u64, kind: u32) -> Result<()> {
        self.done(what.node, Operation::Setlk(lk_in(what.file, owner, kind)))
    }

    /// SETLKW: requests the lock. The daemon waits for the holder; this call does not.
    pub fn submit_setlkw(
        &mut self,
        queue: usize,
        what: NodeAndFile,
        owner: u64,
        kind: u32,
    ) -> Result<Ticket> {
        let operation = Operation::Setlkw(lk_in(what.file, owner, kind));
        self.submit(queue, what.node, operation, &[], STRUCTURES)
    }

    fn done(&mut self, node: NodeId, operation: Operation<'_>) -> Result<()> {
        self.call(node, operation, &[], STRUCTURES).map(|_| ())
    }

    fn entry(&mut self, node: NodeId, operation: Operation<'_>) -> Result<EntryOut> {
        let payload = self.call(node, operation, &[], STRUCTURES)?;
        Ok(reply::decode_entry(&payload)?)
    }

    fn opened(&mut self, node: NodeId, operation: Operation<'_>) -> Result<Handle> {
        let payload = self.call(node, operation, &[], STRUCTURES)?;
        let opened: OpenOut = reply::decode_open(&payload)?;
        Ok(Handle::new(opened.fh))
    }
}

fn open_in(flags: OFlags) -> OpenIn {
    OpenIn {
        flags: (flags | OFlags::LARGEFILE).bits(),
        open_flags: 0,
    }
}

fn read_in(file: Handle, offset: u64, size: u32) -> ReadIn {
    ReadIn {
        fh: file.get(),
        offset,
        size,
        ..ReadIn::default()
    }
}

fn release_in(file: Handle) -> ReleaseIn {
    ReleaseIn {
        fh: file.get(),
        ..ReleaseIn::default()
    }
}

fn lk_in(file: Handle, owner: u64, kind: u32) -> LkIn {
    LkIn {
        fh: file.get(),
        owner,
        lk: FileLock {
            start: 0,
            end: i64::MAX.unsigned_abs(),
            r#type: kind,
            pid: 1,
        },
        ..LkIn::default()
    }
}

fn to_len(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
