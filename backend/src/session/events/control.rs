//! Requests for the directory and the file of changes, and for their name in the root.

use std::ffi::CStr;
use std::io;

use gangplank_fuse::{
    AttrOut, FopenFlags, InHeader, NodeId, OpenOut, Operation, ReadIn, Request, StatfsOut, Statx,
    StatxOut, SxTime, WriteOut,
};

use super::super::dispatch::Call;
use super::super::file_system::FileSystem;
use super::super::name::Name;
use super::super::reply::{put, put_bytes};
use super::node::{self, DIRECTORY, FILE};
use super::{EventRead, Events, View, waker};

/// The READ of the file of changes that has to wait, if this is one.
pub(in crate::session) fn waits(
    events: &Events,
    fs: &impl FileSystem,
    header: &InHeader,
    operation: &Operation<'_>,
) -> Option<EventRead> {
    let Operation::Read(ReadIn { fh, size, .. }) = operation else {
        return None;
    };
    if header.node() != FILE {
        return None;
    }
    let held = events.hold_readers();
    // The worker before has opened it. If that fails now, the READ fails too.
    if events.know(*fh).ok()? && fs.watch().is_err() {
        events.release(*fh);
        return None;
    }
    drop(held);
    events.must_wait(*fh).then(|| EventRead {
        unique: header.unique(),
        handle: *fh,
        size: usize::try_from(*size).unwrap_or(usize::MAX),
    })
}

/// Serves a request if it is for one of these nodes, or of the waker. Returns the payload's length.
pub(in crate::session) fn serve(
    events: &Events,
    fs: &impl FileSystem,
    request: &Request<'_>,
    call: &mut Call<'_, '_, '_>,
) -> Option<io::Result<usize>> {
    let node = call.header.node();
    if node::is_own(node) {
        return Some(serve_own(events, fs, node, &request.operation, call));
    }
    if names_own(node, &request.operation) {
        return Some(match request.operation {
            Operation::Lookup { .. } => put(call.reply, &node::entry(DIRECTORY)),
            _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
        });
    }
    // Even if the waker's handle is not known yet to this worker.
    if events.is_waker(call.header.pid)
        && let Some(served) = waker::serve(events, fs, &request.operation, call)
    {
        return Some(served);
    }
    match &request.operation {
        Operation::Lookup { name } if events.is_read() => Some(lookup(events, fs, name, call)),
        _ => None,
    }
}

/// Looks up a name, and remembers what it leads to.
fn lookup(
    events: &Events,
    fs: &impl FileSystem,
    name: &CStr,
    call: &mut Call<'_, '_, '_>,
) -> io::Result<usize> {
    let parent = call.header.node();
    let entry = fs.lookup(parent, Name::new(name)?)?;
    if entry.nodeid != 0 {
        events.note_name(parent, name, NodeId::new(entry.nodeid));
    }
    put(call.reply, &entry)
}

/// Whether an operation is about the name of the directory.
fn names_own(node: NodeId, operation: &Operation<'_>) -> bool {
    use Operation as Op;
    let is_own = |parent: NodeId, name: &CStr| {
        parent == NodeId::ROOT && name.to_bytes() == node::DIRECTORY_NAME
    };
    match operation {
        Op::Lookup { name }
        | Op::Symlink { name, .. }
        | Op::Mknod { name, .. }
        | Op::Mkdir { name, .. }
        | Op::Unlink { name }
        | Op::Rmdir { name }
        | Op::Link { name, .. }
        | Op::Create { name, .. } => is_own(node, name),
        Op::Rename {
            args,
            name,
            new_name,
        } => is_own(node, name) || is_own(NodeId::new(args.newdir), new_name),
        Op::Rename2 {
            args,
            name,
            new_name,
        } => is_own(node, name) || is_own(NodeId::new(args.newdir), new_name),
        _ => false,
    }
}

fn serve_own(
    events: &Events,
    fs: &impl FileSystem,
    node: NodeId,
    operation: &Operation<'_>,
    call: &mut Call<'_, '_, '_>,
) -> io::Result<usize> {
    use Operation as Op;
    match (operation, node) {
        (Op::Lookup { name }, DIRECTORY) if name.to_bytes() == node::FILE_NAME => {
            put(call.reply, &node::entry(FILE))
        }
        (Op::Lookup { .. }, _) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        (Op::Forget(_) | Op::Releasedir(_) | Op::Flush(_), _)
        | (Op::Access(_) | Op::Fsync(_) | Op::Fsyncdir(_), _) => Ok(0),
        (Op::Getattr(_), _) => {
            let attr = node::attributes(node);
            put(
                call.reply,
                &AttrOut {
                    attr,
                    ..AttrOut::default()
                },
            )
        }
        (Op::Statx(_), _) => put(call.reply, &statx(node)),
        (Op::Statfs, _) => put(
            call.reply,
            &StatfsOut {
                st: fs.statfs(NodeId::ROOT)?,
            },
        ),
        // Nothing is listed.
        (Op::Opendir(_), DIRECTORY) => put(call.reply, &OpenOut::default()),
        (Op::Readdir(_) | Op::Readdirplus(_), DIRECTORY) => Ok(0),
        (Op::Open(args), FILE) => open(events, fs, args.flags, call),
        (Op::Release(args), FILE) => {
            let _held = events.hold_readers();
            if events.release(args.fh) {
                fs.unwatch();
            }
            Ok(0)
        }
        (Op::Read(args), FILE) => {
            let size = usize::try_from(args.size).unwrap_or(usize::MAX);
            let lines = events.take(args.fh, size.min(call.reply.remaining()))?;
            put_bytes(call.reply, &lines)
        }
        (Op::Write(args), FILE) => {
            if !Events::wakes(args.fh) {
                return Err(io::Error::from_raw_os_error(libc::EBADF));
            }
            let mut word = [0; 16];
            let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
            let size = args.size;
            let len = call.data.remaining();
            if usize::try_from(size) != Ok(len) {
                return Err(invalid());
            }
            let word = word.get_mut(..len).ok_or_else(invalid)?;
            call.data.read(word);
            events.set_view(View::from_word(word).ok_or_else(invalid)?);
            put(call.reply, &WriteOut { size, padding: 0 })
        }
        (Op::Getxattr { .. } | Op::Listxattr(_), _) => {
            Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
        }
        // Not ENOSYS, which would be for the whole mount.
        _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

fn open(
    events: &Events,
    fs: &impl FileSystem,
    flags: u32,
    call: &mut Call<'_, '_, '_>,
) -> io::Result<usize> {
    let wakes = match flags.cast_signed() & libc::O_ACCMODE {
        libc::O_RDONLY => false,
        libc::O_RDWR => true,
        _ => return Err(io::Error::from_raw_os_error(libc::EACCES)),
    };
    let _held = events.hold_readers();
    let handle = events.open(call.header.pid, wakes)?;
    if let Err(error) = fs.watch() {
        events.release(handle.get());
        return Err(error);
    }
    let flags = FopenFlags::DIRECT_IO | FopenFlags::STREAM | FopenFlags::NOFLUSH;
    put(
        call.reply,
        &OpenOut {
            fh: handle.get(),
            open_flags: flags.bits(),
            ..OpenOut::default()
        },
    )
}

fn statx(node: NodeId) -> StatxOut {
    let attr = node::attributes(node);
    let time = SxTime {
        tv_sec: attr.mtime.cast_signed(),
        tv_nsec: attr.mtimensec,
        ..SxTime::default()
    };
    StatxOut {
        stat: Statx {
            mask: libc::STATX_BASIC_STATS,
            blksize: attr.blksize,
            nlink: attr.nlink,
            mode: u16::try_from(attr.mode).unwrap_or_default(),
            ino: attr.ino,
            atime: time,
            ctime: time,
            mtime: time,
            ..Statx::default()
        },
        ..StatxOut::default()
    }
}
