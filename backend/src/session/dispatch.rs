//! Calls the file system for a decoded operation and writes the result as the reply's payload.

use std::ffi::CStr;
use std::io;

use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::{
    CopyFileRangeIn, CopyFileRangeOut, EntryOut, Extensions, FsyncFlags, FsyncIn, GetattrFlags,
    GetxattrOut, Handle, InHeader, IoctlIn, IoctlOut, LkOut, LseekOut, NodeId, OpenOut, Operation,
    ReadIn, Request, SecurityContexts, StatfsOut, WriteOut,
};

use super::file_system::{Caller, Creator, FileSystem, GuestGid, GuestUid, LockWait};
use super::host_errors::not_offered;
use super::name::Name;
use super::reply::{put, put_bytes};
use crate::device::request::IoMode;
use crate::sys::buffers::{Reader, Writer};

/// Most bytes of an extended attribute's value and of the list of names (`XATTR_SIZE_MAX` and
/// `XATTR_LIST_MAX`, `include/uapi/linux/limits.h`).
const XATTR_MAX: usize = 64 * 1024;

/// Bytes of the buffer for a symbolic link's target: one more than the longest target has
/// (`PATH_MAX` counts the NUL), so that a truncated target is detected.
const SYMLINK_TARGET_MAX: usize = 4096;

/// Most bytes that one COPY_FILE_RANGE copies: the most whole 4 KiB pages that its reply, a 32-bit
/// count, can report.
pub(super) const COPY_MAX: u64 = 0xffff_f000;

/// Most bytes of the argument and of the result of an ioctl(2) command. Those that are supported
/// have at most 68.
const IOCTL_MAX: usize = 128;

/// Most bytes of a reply to READDIR and READDIRPLUS.
const READDIR_MAX: usize = 256 * 1024;

/// A request that is being served.
pub(super) struct Call<'a, 'r, 'w> {
    pub(super) header: &'a InHeader,
    /// The data of a WRITE, which follows the decoded arguments.
    pub(super) data: &'a mut Reader<'r>,
    /// The reply's payload.
    pub(super) reply: &'a mut Writer<'w>,
    /// Buffer for payloads that are composed before they are copied into the reply.
    pub(super) buffer: &'a mut Vec<u8>,
    /// Whether the operation may wait for a disk.
    pub(super) mode: IoMode,
}

impl Call<'_, '_, '_> {
    fn caller(&self) -> Caller {
        Caller {
            uid: GuestUid::new(self.header.uid),
            gid: GuestGid::new(self.header.gid),
            pid: self.header.pid,
        }
    }

    /// Who creates an object, and what the object is to get.
    ///
    /// # Errors
    /// EINVAL: more than one label.
    pub(super) fn creator<'e>(
        &self,
        umask: u32,
        extensions: &Extensions<'e>,
    ) -> io::Result<Creator<'e>> {
        let mut labels = extensions
            .security_contexts
            .iter()
            .flat_map(SecurityContexts::iter);
        let label = labels.next();
        if labels.next().is_some() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(Creator {
            caller: self.caller(),
            umask,
            groups: extensions.groups,
            // Without a value, the guest has no label for it.
            label: label.filter(|label| !label.value.is_empty()),
        })
    }

    /// Returns `wanted` bytes of the buffer, or fewer if `limit` or the reply's room is smaller.
    fn buffer(&mut self, wanted: usize, limit: usize) -> &mut [u8] {
        let len = wanted.min(limit).min(self.reply.remaining());
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        &mut self.buffer[..len]
    }

    fn put_buffer(&mut self, len: usize) -> io::Result<usize> {
        let bytes = self.buffer.get(..len);
        let bytes = bytes.ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
        put_bytes(self.reply, bytes)
    }

    pub(super) fn put_opened(&mut self, (entry, opened): (EntryOut, OpenOut)) -> io::Result<usize> {
        Ok(put(self.reply, &entry)? + put(self.reply, &opened)?)
    }

    /// Writes the reply to GETXATTR or LISTXATTR: the length alone if `size` is 0.
    fn put_xattr(
        &mut self,
        size: u32,
        get: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if size == 0 {
            let size = u32::try_from(get(&mut [])?).unwrap_or(u32::MAX);
            return put(self.reply, &GetxattrOut { size, padding: 0 });
        }
        let len = get(self.buffer(to_len(size), XATTR_MAX))?;
        self.put_buffer(len)
    }

    /// Carries out IOCTL and writes its reply.
    fn ioctl(&mut self, fs: &impl FileSystem, args: &IoctlIn) -> io::Result<usize> {
        let (mut input, mut output) = ([0; IOCTL_MAX], [0; IOCTL_MAX]);
        let input = input.get_mut(..to_len(args.in_size));
        let output = output.get_mut(..to_len(args.out_size));
        let (Some(input), Some(output)) = (input, output) else {
            return Err(io::Error::from_raw_os_error(libc::ENOTTY));
        };
        if self.data.remaining() != input.len() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.data.read(input);
        let (caller, node) = (self.caller(), self.header.node());
        let len = fs.ioctl(caller, node, args, input, output)?;
        let head = put(self.reply, &IoctlOut::default())?;
        Ok(head + put_bytes(self.reply, output.get(..len).unwrap_or_default())?)
    }

    fn put_entries(
        &mut self,
        args: &ReadIn,
        list: impl FnOnce(&mut DirentWriter<'_>) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut entries = DirentWriter::new(self.buffer(to_len(args.size), READDIR_MAX));
        list(&mut entries)?;
        let len = entries.written();
        self.put_buffer(len)
    }
}

fn to_len(size: u32) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// Calls the file system for an operation and writes the reply's payload. Returns the payload's
/// length in bytes.
///
/// The session handles INIT, DESTROY, INTERRUPT and SETLKW itself.
pub(super) fn dispatch(
    fs: &impl FileSystem,
    request: &Request<'_>,
    call: &mut Call<'_, '_, '_>,
) -> io::Result<usize> {
    use Operation as Op;

    let node = call.header.node();
    let extensions = &request.extensions;
    let caller = call.caller();
    match &request.operation {
        Op::Lookup { name } => put(call.reply, &fs.lookup(node, Name::new(name)?)?),
        Op::Forget(args) => {
            fs.forget(node, args.nlookup);
            Ok(0)
        }
        Op::BatchForget(nodes) => {
            nodes
                .iter()
                .for_each(|one| fs.forget(one.node(), one.nlookup));
            Ok(0)
        }
        Op::Getattr(args) => {
            let named =
                GetattrFlags::from_bits_retain(args.getattr_flags).contains(GetattrFlags::FH);
            put(
                call.reply,
                &fs.getattr(node, named.then(|| Handle::new(args.fh)))?,
            )
        }
        Op::Statx(args) => put(call.reply, &fs.statx(node, args)?),
        Op::Setattr(args) => put(call.reply, &fs.setattr(caller, node, args)?),
        Op::Access(args) => done(fs.access(caller, node, args.mask)),
        Op::Statfs => put(
            call.reply,
            &StatfsOut {
                st: fs.statfs(node)?,
            },
        ),
        Op::Syncfs(_) => done(fs.syncfs(node)),

        Op::Readlink => {
            // The buffer does not depend on the reply's room: a target that does not fit must
            // fail, not be truncated.
            call.buffer
                .resize(SYMLINK_TARGET_MAX.max(call.buffer.len()), 0);
            let len = fs.readlink(node, &mut call.buffer[..SYMLINK_TARGET_MAX])?;
            call.put_buffer(len)
        }
        Op::Symlink { name, target } => {
            let creator = call.creator(0, extensions)?;
            put(
                call.reply,
                &fs.symlink(&creator, node, Name::new(name)?, target)?,
            )
        }
        Op::Mknod { args, name } => {
            let creator = call.creator(args.umask, extensions)?;
            put(
                call.reply,
                &fs.mknod(&creator, node, Name::new(name)?, args.mode, args.rdev)?,
            )
        }
        Op::Mkdir { args, name } => {
            let creator = call.creator(args.umask, extensions)?;
            put(
                call.reply,
                &fs.mkdir(&creator, node, Name::new(name)?, args.mode)?,
            )
        }
        Op::Unlink { name } => done(fs.unlink(node, Name::new(name)?)),
        Op::Rmdir { name } => done(fs.rmdir(node, Name::new(name)?)),
        Op::Rename {
            args,
            name,
            new_name,
        } => rename(
            fs,
            request,
            call,
            (NodeId::new(args.newdir), name, new_name, 0),
        ),
        Op::Rename2 {
            args,
            name,
            new_name,
        } => {
            let to = NodeId::new(args.newdir);
            rename(fs, request, call, (to, name, new_name, args.flags))
        }
        Op::Link { args, name } => {
            let old = NodeId::new(args.oldnodeid);
            put(call.reply, &fs.link(old, node, Name::new(name)?)?)
        }

        Op::Open(args) => put(call.reply, &fs.open(node, args)?),
        Op::Create { args, name } => {
            let creator = call.creator(args.umask, extensions)?;
            call.put_opened(fs.create(&creator, node, Name::new(name)?, args)?)
        }
        Op::Tmpfile { args, .. } => {
            let creator = call.creator(args.umask, extensions)?;
            call.put_opened(fs.tmpfile(&creator, node, args)?)
        }
        Op::Read(args) => fs.read(node, args, call.reply, call.mode),
        Op::Write(args) => {
            if to_len(args.size) != call.data.remaining() {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            let written = fs.write(node, args, call.data)?;
            let size = u32::try_from(written).unwrap_or(u32::MAX);
            put(call.reply, &WriteOut { size, padding: 0 })
        }
        Op::Release(args) => done(fs.release(node, args)),
        Op::Flush(args) => done(fs.flush(node, Handle::new(args.fh), args.lock_owner)),
        Op::Fsync(args) => done(fs.fsync(node, Handle::new(args.fh), is_data_only(args))),
        Op::Fallocate(args) => done(fs.fallocate(caller, node, args)),
        Op::Lseek(args) => put(
            call.reply,
            &LseekOut {
                offset: fs.lseek(node, args)?,
            },
        ),
        Op::CopyFileRange(args) => {
            let len = args.len.min(COPY_MAX);
            let copied = fs.copy_file_range(caller, node, &CopyFileRangeIn { len, ..*args })?;
            let size = u32::try_from(copied).unwrap_or(u32::MAX);
            put(call.reply, &WriteOut { size, padding: 0 })
        }
        Op::CopyFileRange64(args) => {
            let bytes_copied = fs.copy_file_range(caller, node, args)?;
            put(call.reply, &CopyFileRangeOut { bytes_copied })
        }

        Op::Opendir(args) => put(call.reply, &fs.opendir(node, args)?),
        Op::Readdir(args) => call.put_entries(args, |entries| fs.readdir(node, args, entries)),
        Op::Readdirplus(args) => {
            call.put_entries(args, |entries| fs.readdirplus(node, args, entries))
        }
        Op::Releasedir(args) => done(fs.releasedir(node, args)),
        Op::Fsyncdir(args) => done(fs.fsyncdir(node, Handle::new(args.fh), is_data_only(args))),

        Op::Setxattr { args, name, value } => done(fs.setxattr(node, args, name, value)),
        Op::Getxattr { args, name } => {
            call.put_xattr(args.size, |value| fs.getxattr(node, name, value))
        }
        Op::Listxattr(args) => call.put_xattr(args.size, |names| fs.listxattr(node, names)),
        Op::Removexattr { name } => done(fs.removexattr(node, name)),

        Op::Ioctl(args) => call.ioctl(fs, args),

        Op::Getlk(args) => put(
            call.reply,
            &LkOut {
                lk: fs.getlk(node, args)?,
            },
        ),
        Op::Setlk(args) => done(fs.setlk(node, args, LockWait::No)),

        _ => {
            log::debug!("FUSE opcode {} is not supported", call.header.opcode);
            Err(not_offered())
        }
    }
}

fn rename(
    fs: &impl FileSystem,
    request: &Request<'_>,
    call: &Call<'_, '_, '_>,
    (new_parent, name, new_name, flags): (NodeId, &CStr, &CStr, u32),
) -> io::Result<usize> {
    let creator = call.creator(0, &request.extensions)?;
    let (name, new_name) = (Name::new(name)?, Name::new(new_name)?);
    let parent = call.header.node();
    done(fs.rename(&creator, parent, name, new_parent, new_name, flags))
}

fn done(result: io::Result<()>) -> io::Result<usize> {
    result.map(|()| 0)
}

fn is_data_only(args: &FsyncIn) -> bool {
    FsyncFlags::from_bits_retain(args.fsync_flags).contains(FsyncFlags::FDATASYNC)
}
