//! Every FUSE operation as a function: its arguments, and the type of its reply.
//!
//! Each line of the table makes a function here, which returns a [`Call`] to submit or call, and a
//! method of [`FuseSession`] that sends the request and waits for the reply. READ and WRITE have
//! functions of their own at the end.

use std::ffi::CStr;

use gangplank_fuse::dir::{Direntplusses, Dirents};
use gangplank_fuse::{
    AccessIn, AttrOut, BmapIn, CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, FileLock, FlushIn,
    FsyncIn, GetattrFlags, GetattrIn, GetxattrIn, Handle, IoctlIn, IoctlOut, Kstatfs, LinkIn, LkIn,
    LseekIn, MkdirIn, MknodIn, NodeId, OpenIn, OpenOut, Operation, PollIn, ReadIn, ReleaseIn,
    Rename2In, RenameIn, SetattrIn, SetxattrIn, StatxIn, StatxOut, SyncfsIn, WriteIn, reply,
};

use super::error::{BadReply, Result};
use super::fuse_session::FuseSession;
use super::memory::Buffer;
use super::reply::{Answer, Data, Decode};
use super::request::Call;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Vec<u8>,
    /// Inode number, as the daemon reports it.
    pub ino: u64,
    /// The offset at which READDIR continues after this entry.
    pub offset: u64,
    /// `DT_*` of readdir(3).
    pub kind: u32,
    /// The node, from READDIRPLUS. It holds one more reference to the node. None for "." and "..",
    /// and where the daemon gave none.
    pub node: Option<EntryOut>,
}

/// Declares operations: each line makes the function that returns the call, and the method of
/// [`FuseSession`].
macro_rules! operations {
    ($lifetime:lifetime; $(
        $(#[$meta:meta])*
        $name:ident($($argument:ident: $ty:ty),*) -> $out:ty
            = $node:expr, $operation:expr, $decode:expr;
    )*) => {
        $(
            $(#[$meta])*
            pub fn $name<$lifetime>($($argument: $ty),*) -> Call<$lifetime, $out> {
                Call::new($node, $operation, $decode)
            }
        )*

        /// Each method sends the request and waits for the reply. All fail alike: with the daemon's
        /// errno, or with the reason why there is no reply.
        #[allow(clippy::missing_errors_doc, reason = "all of them fail alike, as said above")]
        #[allow(
            clippy::needless_lifetimes,
            clippy::extra_unused_lifetimes,
            reason = "the table's types name it, where they need it"
        )]
        impl FuseSession {
            $(
                $(#[$meta])*
                pub fn $name<$lifetime>(&self, $($argument: $ty),*) -> Result<$out> {
                    self.call($name($($argument),*))
                }
            )*
        }
    };
}

operations! { 'a;
    /// LOOKUP. The node's number is zero if the daemon knows that the name does not exist; other
    /// daemons answer ENOENT.
    lookup(parent: NodeId, name: &'a CStr) -> EntryOut
        = parent, Operation::Lookup { name }, entry;
    /// GETATTR, of an open file if `file` is given.
    getattr(node: NodeId, file: Option<Handle>) -> AttrOut
        = node, Operation::Getattr(getattr_in(file)), attributes;
    /// SETATTR.
    setattr(node: NodeId, args: SetattrIn) -> AttrOut
        = node, Operation::Setattr(args), attributes;
    /// STATX.
    statx(node: NodeId, args: StatxIn) -> StatxOut
        = node, Operation::Statx(args), |answer| Ok(reply::decode_statx(&answer.payload)?);
    /// READLINK: the link's target.
    readlink(node: NodeId) -> Vec<u8>
        = node, Operation::Readlink, |answer| Ok(answer.payload);
    /// SYMLINK.
    symlink(parent: NodeId, name: &'a CStr, target: &'a CStr) -> EntryOut
        = parent, Operation::Symlink { name, target }, entry;
    /// MKNOD.
    mknod(parent: NodeId, name: &'a CStr, args: MknodIn) -> EntryOut
        = parent, Operation::Mknod { args, name }, entry;
    /// MKDIR.
    mkdir(parent: NodeId, name: &'a CStr, args: MkdirIn) -> EntryOut
        = parent, Operation::Mkdir { args, name }, entry;
    /// UNLINK.
    unlink(parent: NodeId, name: &'a CStr) -> ()
        = parent, Operation::Unlink { name }, nothing;
    /// RMDIR.
    rmdir(parent: NodeId, name: &'a CStr) -> ()
        = parent, Operation::Rmdir { name }, nothing;
    /// RENAME.
    rename(parent: NodeId, name: &'a CStr, new_parent: NodeId, new_name: &'a CStr) -> ()
        = parent,
          Operation::Rename { args: RenameIn { newdir: new_parent.get() }, name, new_name },
          nothing;
    /// RENAME2, with `RENAME_*` flags of renameat2(2).
    rename2(
        parent: NodeId, name: &'a CStr, new_parent: NodeId, new_name: &'a CStr, flags: u32
    ) -> ()
        = parent,
          Operation::Rename2 {
              args: Rename2In { newdir: new_parent.get(), flags, padding: 0 }, name, new_name
          },
          nothing;
    /// LINK: another name for `node`.
    link(node: NodeId, new_parent: NodeId, new_name: &'a CStr) -> EntryOut
        = new_parent,
          Operation::Link { args: LinkIn { oldnodeid: node.get() }, name: new_name },
          entry;
    /// OPEN.
    open(node: NodeId, args: OpenIn) -> OpenOut
        = node, Operation::Open(args), |answer| Ok(reply::decode_open(&answer.payload)?);
    /// OPENDIR.
    opendir(node: NodeId, args: OpenIn) -> OpenOut
        = node, Operation::Opendir(args), |answer| Ok(reply::decode_open(&answer.payload)?);
    /// CREATE, of a name that LOOKUP has not found. If the name exists by now, daemons open the
    /// file, or answer EEXIST or ESTALE.
    create(parent: NodeId, name: &'a CStr, args: CreateIn) -> (EntryOut, OpenOut)
        = parent, Operation::Create { args, name }, created;
    /// TMPFILE.
    tmpfile(parent: NodeId, args: CreateIn) -> (EntryOut, OpenOut)
        = parent, Operation::Tmpfile { args, name: c"/" }, created;
    /// RELEASE.
    release(node: NodeId, args: ReleaseIn) -> ()
        = node, Operation::Release(args), nothing;
    /// RELEASEDIR.
    releasedir(node: NodeId, args: ReleaseIn) -> ()
        = node, Operation::Releasedir(args), nothing;
    /// FLUSH.
    flush(node: NodeId, args: FlushIn) -> ()
        = node, Operation::Flush(args), nothing;
    /// FSYNC.
    fsync(node: NodeId, args: FsyncIn) -> ()
        = node, Operation::Fsync(args), nothing;
    /// FSYNCDIR.
    fsyncdir(node: NodeId, args: FsyncIn) -> ()
        = node, Operation::Fsyncdir(args), nothing;
    /// STATFS.
    statfs(node: NodeId) -> Kstatfs
        = node, Operation::Statfs, |answer| Ok(reply::decode_statfs(&answer.payload)?.st);
    /// SYNCFS.
    syncfs(node: NodeId) -> ()
        = node, Operation::Syncfs(SyncfsIn::default()), nothing;
    /// ACCESS, with the mask of access(2).
    access(node: NodeId, mask: u32) -> ()
        = node, Operation::Access(AccessIn { mask, padding: 0 }), nothing;
    /// SETXATTR; the length comes from `value`.
    setxattr(node: NodeId, name: &'a CStr, value: &'a [u8], args: SetxattrIn) -> ()
        = node, Operation::Setxattr { args, name, value }, nothing;
    /// GETXATTR of at most `size` bytes, not zero.
    getxattr(node: NodeId, name: &'a CStr, size: u32) -> Vec<u8>
        = node, Operation::Getxattr { args: GetxattrIn { size, padding: 0 }, name },
          |answer| Ok(answer.payload);
    /// GETXATTR of the value's length, in bytes.
    getxattr_size(node: NodeId, name: &'a CStr) -> u32
        = node, Operation::Getxattr { args: GetxattrIn::default(), name },
          |answer| Ok(reply::decode_xattr_size(&answer.payload)?.size);
    /// LISTXATTR of at most `size` bytes, not zero; [`reply::decode_xattr_names`] splits the list.
    listxattr(node: NodeId, size: u32) -> Vec<u8>
        = node, Operation::Listxattr(GetxattrIn { size, padding: 0 }),
          |answer| Ok(answer.payload);
    /// LISTXATTR of the list's length, in bytes.
    listxattr_size(node: NodeId) -> u32
        = node, Operation::Listxattr(GetxattrIn::default()),
          |answer| Ok(reply::decode_xattr_size(&answer.payload)?.size);
    /// REMOVEXATTR.
    removexattr(node: NodeId, name: &'a CStr) -> ()
        = node, Operation::Removexattr { name }, nothing;
    /// GETLK: a lock that conflicts, or one of type `F_UNLCK`.
    getlk(node: NodeId, args: LkIn) -> FileLock
        = node, Operation::Getlk(args), |answer| Ok(reply::decode_lk(&answer.payload)?.lk);
    /// SETLK.
    setlk(node: NodeId, args: LkIn) -> ()
        = node, Operation::Setlk(args), nothing;
    /// SETLKW: waits until the lock is free, as long as the session's limit and the daemon allow.
    setlkw(node: NodeId, args: LkIn) -> ()
        = node, Operation::Setlkw(args), nothing;
    /// LSEEK: the position found, in bytes.
    lseek(node: NodeId, args: LseekIn) -> u64
        = node, Operation::Lseek(args), |answer| Ok(reply::decode_lseek(&answer.payload)?.offset);
    /// FALLOCATE.
    fallocate(node: NodeId, args: FallocateIn) -> ()
        = node, Operation::Fallocate(args), nothing;
    /// COPY_FILE_RANGE: bytes copied.
    copy_file_range(node: NodeId, args: CopyFileRangeIn) -> u32
        = node, Operation::CopyFileRange(args),
          |answer| written(&answer);
    /// COPY_FILE_RANGE_64: bytes copied.
    copy_file_range_64(node: NodeId, args: CopyFileRangeIn) -> u64
        = node, Operation::CopyFileRange64(args),
          |answer| {
              let copied = reply::decode_copy_file_range_64(&answer.payload)?.bytes_copied;
              within(copied, answer.asked)?;
              Ok(copied)
          };
    /// READDIR: the entries that fit in `args.size` bytes. None at the end of the directory.
    readdir(node: NodeId, args: ReadIn) -> Vec<DirEntry>
        = node, Operation::Readdir(args), names;
    /// READDIRPLUS: the entries that fit in `args.size` bytes, each with a reference to its node.
    /// None at the end.
    readdirplus(node: NodeId, args: ReadIn) -> Vec<DirEntry>
        = node, Operation::Readdirplus(args), names_and_nodes;
    /// BMAP: the block on the device.
    bmap(node: NodeId, args: BmapIn) -> u64
        = node, Operation::Bmap(args), |answer| Ok(reply::decode_bmap(&answer.payload)?.block);
    /// POLL: the `EPOLL*` events that are ready.
    poll(node: NodeId, args: PollIn) -> u32
        = node, Operation::Poll(args), |answer| Ok(reply::decode_poll(&answer.payload)?.revents);
    /// IOCTL that sends no data: its result and the data that it returns.
    ioctl(node: NodeId, args: IoctlIn) -> (IoctlOut, Vec<u8>)
        = node, Operation::Ioctl(IoctlIn { in_size: 0, ..args }), |answer| {
            let (out, data) = reply::decode_ioctl(&answer.payload)?;
            Ok((out, data.to_vec()))
        };
}

/// READ into the whole of `buffer`.
pub fn read<'a>(node: NodeId, args: ReadIn, buffer: Buffer) -> Call<'a, Data> {
    let size = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
    let args = ReadIn { size, ..args };
    let decode: Decode<Data> = |answer| {
        let counted = 0;
        answer.data.ok_or(BadReply::Count {
            counted,
            asked: answer.asked,
        })
    };
    Call {
        receive: Some((buffer, size)),
        ..Call::new(node, Operation::Read(args), decode)
    }
}

/// WRITE of the first `args.size` bytes of `buffer`: bytes written.
pub fn write<'a>(node: NodeId, args: WriteIn, buffer: Buffer) -> Call<'a, u32> {
    let most = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
    let size = args.size.min(most);
    let args = WriteIn { size, ..args };
    Call {
        send: Some((buffer, size)),
        ..Call::new(node, Operation::Write(args), |answer| written(&answer))
    }
}

/// As [`write()`], and returns the data as well: the daemon may write less of it, and the caller
/// can send the rest again.
pub fn write_and_keep<'a>(node: NodeId, args: WriteIn, buffer: Buffer) -> Call<'a, (u32, Data)> {
    let Call {
        node,
        request,
        send,
        receive,
        ..
    } = write(node, args, buffer);
    let decode: Decode<(u32, Data)> = |answer| {
        let counted = written(&answer)?;
        let data = answer.sent.ok_or(BadReply::Count {
            counted: counted.into(),
            asked: 0,
        })?;
        Ok((counted, data))
    };
    Call {
        node,
        request,
        send,
        receive,
        decode,
    }
}

/// Reading and writing.
impl FuseSession {
    /// READ of at most `size` bytes at `offset`.
    ///
    /// # Errors
    /// The daemon's errno, or the reason why there is no reply.
    pub fn read(&self, node: NodeId, file: Handle, offset: u64, size: u32) -> Result<Data> {
        let buffer = self.buffer(usize::try_from(size).unwrap_or(usize::MAX))?;
        let args = ReadIn {
            fh: file.get(),
            offset,
            ..ReadIn::default()
        };
        self.call(read(node, args, buffer))
    }

    /// WRITE of a copy of `data` at `offset`: bytes written.
    ///
    /// # Errors
    /// The daemon's errno, or the reason why there is no reply.
    pub fn write(&self, node: NodeId, file: Handle, offset: u64, data: &[u8]) -> Result<u32> {
        let buffer = self.buffer(data.len())?;
        buffer.bytes().copy_from(data);
        let args = WriteIn {
            fh: file.get(),
            offset,
            size: u32::try_from(data.len()).unwrap_or(u32::MAX),
            ..WriteIn::default()
        };
        self.call(write(node, args, buffer))
    }
}

fn getattr_in(file: Option<Handle>) -> GetattrIn {
    let flags = file.map_or(GetattrFlags::empty(), |_| GetattrFlags::FH);
    GetattrIn {
        getattr_flags: flags.bits(),
        dummy: 0,
        fh: file.unwrap_or_default().get(),
    }
}

/// The bytes that the daemon says it has written: at most as many as it was given.
fn written(answer: &Answer) -> std::result::Result<u32, BadReply> {
    let size = reply::decode_write(&answer.payload)?.size;
    within(size.into(), answer.asked)?;
    Ok(size)
}

fn within(counted: u64, asked: u64) -> std::result::Result<(), BadReply> {
    match counted > asked {
        true => Err(BadReply::Count { counted, asked }),
        false => Ok(()),
    }
}

/// A directory entry's name, by the rules of the kernel: not empty, and without a slash.
fn checked_name(name: &[u8]) -> std::result::Result<Vec<u8>, BadReply> {
    match name.is_empty() || name.contains(&b'/') {
        true => Err(BadReply::Name { len: name.len() }),
        false => Ok(name.to_vec()),
    }
}

fn nothing(_: Answer) -> std::result::Result<(), BadReply> {
    Ok(())
}

fn entry(answer: Answer) -> std::result::Result<EntryOut, BadReply> {
    Ok(reply::decode_entry(&answer.payload)?)
}

fn attributes(answer: Answer) -> std::result::Result<AttrOut, BadReply> {
    Ok(reply::decode_attr(&answer.payload)?)
}

fn created(answer: Answer) -> std::result::Result<(EntryOut, OpenOut), BadReply> {
    Ok(reply::decode_create(&answer.payload)?)
}

fn names(answer: Answer) -> std::result::Result<Vec<DirEntry>, BadReply> {
    let entries = Dirents::new(&answer.payload).map(|entry| {
        let entry = entry?;
        Ok(DirEntry {
            name: checked_name(entry.name)?,
            ino: entry.dirent.ino,
            offset: entry.dirent.off,
            kind: entry.dirent.r#type,
            node: None,
        })
    });
    entries.collect()
}

fn names_and_nodes(answer: Answer) -> std::result::Result<Vec<DirEntry>, BadReply> {
    let entries = Direntplusses::new(&answer.payload).map(|entry| {
        let entry = entry?;
        Ok(DirEntry {
            name: checked_name(entry.name)?,
            ino: entry.dirent.ino,
            offset: entry.dirent.off,
            kind: entry.dirent.r#type,
            node: (entry.entry_out.nodeid != 0).then_some(entry.entry_out),
        })
    });
    entries.collect()
}
