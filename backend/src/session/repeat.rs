//! Runs a request again that a worker was running when it died.
//!
//! Nobody knows whether the host had carried the operation out. Most operations can simply run
//! again. The guest's kernel locks the directories that an operation changes, so that no other
//! request of this guest came between, and the host's files tell the rest:
//!
//! | operation | run again, the host says | it was carried out, and the reply is success, if |
//! | --- | --- | --- |
//! | MKDIR, MKNOD, SYMLINK, CREATE | EEXIST, or ESTALE | what is there was made between the beginning of the request and the worker's death, by the same user, of the same type, and is empty or has the same target. It then gets what it lacks, such as a label |
//! | LINK | EEXIST | the name leads to the same inode |
//! | UNLINK, RMDIR | ENOENT | always. A name made after the beginning of the request is another's, and stays |
//! | RENAME | ENOENT | the new name's inode has changed since the beginning |
//! | RENAME, exchange or whiteout | | the new name has the inode that the old one had; noted before |
//! | WRITE at the end of the file | | the data is there: the part that is not is written |
//! | FALLOCATE that moves data | | the size is no longer the one noted before |
//! | SETXATTR, only a new one | EEXIST | it has this value |
//! | REMOVEXATTR | ENODATA | always |
//! | RELEASE, RELEASEDIR | EBADF | always |
//! | DESTROY | no session is open | always |
//! | FORGET | not run again | always: at worst a look-up counts until the session ends |
//!
//! OPEN, OPENDIR, CREATE and TMPFILE note the handle before they add it ([`note_auxiliary`]). The
//! guest never heard of that handle, so it is closed before the operation runs again.
//!
//! What remains: another guest or process that does the same to the same name within the
//! milliseconds between the beginning of the request and the death. And an FSYNC that failed, whose
//! reply was lost: a host reports a write error once. And CREATE of a file that its own mode
//! forbids to open, by a daemon without CAP_DAC_OVERRIDE: the file is there, and the guest gets
//! EACCES.

use std::io;

use rustix::time::ClockId;

use gangplank_fuse::{
    EntryOut, GetattrFlags, Handle, NodeId, OpenIn, Operation, Request, StatxIn, WriteFlags,
    WriteOut,
};

use super::dispatch::{Call, dispatch};
use super::file_system::{Creator, FileSystem, GuestUid};
use super::name::Name;
use super::reply::put;
use crate::state::requests::{self, note_auxiliary};
use crate::sys::clock;

/// What is known of a request that a worker was running when it died.
#[derive(Debug, Clone, Copy)]
pub struct Interrupted {
    /// When the worker began to run it, by `CLOCK_REALTIME_COARSE`, in nanoseconds since the epoch.
    /// The kernel stamps files with this time, or a later one of the same tick.
    pub began: i64,
    /// When the worker was found dead, by `CLOCK_REALTIME`.
    pub ended: i64,
    /// What the operation noted, or 0.
    pub note: u64,
}

impl From<requests::Interrupted> for Interrupted {
    /// The worker is found dead at the moment of this call.
    fn from(interrupted: requests::Interrupted) -> Self {
        Self {
            began: i64::try_from(interrupted.time.as_nanos()).unwrap_or(i64::MAX),
            ended: clock::now(ClockId::Realtime),
            note: interrupted.auxiliary,
        }
    }
}

/// The longest tick of a kernel's clock (`CONFIG_HZ` of 100), in nanoseconds.
const TICK: i64 = 10_000_000;

/// Notes what has to be known to run the operation again, if it is one that has to note something
/// before it runs.
pub(super) fn prepare(fs: &impl FileSystem, request: &Request<'_>, parent: NodeId) {
    match &request.operation {
        Operation::Rename2 { args, name, .. } if leaves_the_name(args.flags) => {
            if let Some(ino) = Name::new(name)
                .ok()
                .and_then(|name| ino_of(fs, parent, name))
            {
                note_auxiliary(ino);
            }
        }
        Operation::Fallocate(args) if moves_data(args.mode) => {
            if let Ok(size) = size_of_file(fs, parent, Handle::new(args.fh)) {
                note_auxiliary(size + 1);
            }
        }
        _ => {}
    }
}

/// Carries out an operation that may have been carried out before, and writes the reply's payload.
/// Returns the payload's length in bytes.
pub(super) fn repeat(
    fs: &impl FileSystem,
    request: &Request<'_>,
    call: &mut Call<'_, '_, '_>,
    earlier: Interrupted,
) -> io::Result<usize> {
    use Operation as Op;

    let node = call.header.node();
    let extensions = &request.extensions;
    if earlier.note != 0
        && matches!(
            request.operation,
            Op::Open(_) | Op::Opendir(_) | Op::Create { .. } | Op::Tmpfile { .. }
        )
    {
        fs.abandon(Handle::new(earlier.note));
    }
    match &request.operation {
        Op::Forget(_) | Op::BatchForget(_) => Ok(0),
        Op::Mkdir { args, name } => {
            let creator = call.creator(args.umask, extensions)?;
            let expected = Expected::of(libc::S_IFDIR | args.mode & 0o7777, creator);
            made(fs, request, call, earlier, name, expected)
        }
        Op::Mknod { args, name } => {
            let creator = call.creator(args.umask, extensions)?;
            let expected = Expected::of(args.mode, creator);
            made(fs, request, call, earlier, name, expected)
        }
        Op::Symlink { name, target } => {
            let expected = Expected {
                target: Some(target.to_bytes()),
                ..Expected::of(libc::S_IFLNK | 0o777, call.creator(0, extensions)?)
            };
            made(fs, request, call, earlier, name, expected)
        }
        Op::Create { args, name } => match dispatch(fs, request, call) {
            Err(error) if is(&error, &[libc::EEXIST, libc::ESTALE]) => {
                let creator = call.creator(args.umask, extensions)?;
                let mut expected = Expected::of(libc::S_IFREG | args.mode & 0o7777, creator);
                // Only this request can have had a handle of a file that it created.
                expected.is_certain = earlier.note != 0;
                let entry = find_made(fs, node, Name::new(name)?, earlier, expected, error)?;
                let open = OpenIn {
                    flags: args.flags & !(libc::O_CREAT | libc::O_EXCL).cast_unsigned(),
                    open_flags: args.open_flags,
                };
                let id = NodeId::new(entry.nodeid);
                match fs.open(id, &open) {
                    Ok(opened) => call.put_opened((entry, opened)),
                    Err(error) => {
                        fs.forget(id, 1);
                        Err(error)
                    }
                }
            }
            result => result,
        },
        Op::Link { args, name } => match dispatch(fs, request, call) {
            Err(error) if is(&error, &[libc::EEXIST]) => {
                let entry = fs.lookup(node, Name::new(name)?)?;
                if entry.nodeid == args.oldnodeid {
                    return put(call.reply, &entry);
                }
                fs.forget(NodeId::new(entry.nodeid), 1);
                Err(error)
            }
            result => result,
        },
        Op::Unlink { name } | Op::Rmdir { name } => {
            if is_made_later(fs, node, Name::new(name)?, earlier) {
                return Ok(0);
            }
            unless(dispatch(fs, request, call), &[libc::ENOENT])
        }
        Op::Rename { args, new_name, .. } => {
            let to = NodeId::new(args.newdir);
            renamed(fs, request, call, earlier, (to, new_name))
        }
        Op::Rename2 { args, new_name, .. } => {
            let to = NodeId::new(args.newdir);
            if !leaves_the_name(args.flags) {
                return renamed(fs, request, call, earlier, (to, new_name));
            }
            let there = ino_of(fs, to, Name::new(new_name)?);
            match earlier.note != 0 && there == Some(earlier.note) {
                true => Ok(0),
                false => dispatch(fs, request, call),
            }
        }
        Op::Write(args) => {
            let is_cached =
                WriteFlags::from_bits_retain(args.write_flags).contains(WriteFlags::CACHE);
            let appends = args.flags.cast_signed() & libc::O_APPEND != 0 && !is_cached;
            if !appends {
                return dispatch(fs, request, call);
            }
            let written = fs.append_again(node, args, call.data)?;
            let size = u32::try_from(written).unwrap_or(u32::MAX);
            put(call.reply, &WriteOut { size, padding: 0 })
        }
        Op::Fallocate(args) if moves_data(args.mode) && earlier.note != 0 => {
            match size_of_file(fs, node, Handle::new(args.fh))? + 1 == earlier.note {
                true => dispatch(fs, request, call),
                false => Ok(0),
            }
        }
        Op::Setxattr { args, name, value }
            if args.flags & libc::XATTR_CREATE.cast_unsigned() != 0 =>
        {
            match dispatch(fs, request, call) {
                Err(error) if is(&error, &[libc::EEXIST]) => {
                    let mut found = vec![0; value.len() + 1];
                    let len = fs.getxattr(node, name, &mut found).unwrap_or(usize::MAX);
                    (found.get(..len) == Some(*value)).then_some(0).ok_or(error)
                }
                result => result,
            }
        }
        Op::Removexattr { .. } => unless(dispatch(fs, request, call), &[libc::ENODATA]),
        Op::Release(_) | Op::Releasedir(_) => unless(dispatch(fs, request, call), &[libc::EBADF]),
        _ => dispatch(fs, request, call),
    }
}

/// What a request would have made.
#[derive(Debug, Clone, Copy)]
struct Expected<'a> {
    /// Type bits of the mode.
    kind: u32,
    /// The mode, with the type.
    mode: u32,
    /// Who made it.
    creator: Creator<'a>,
    /// The content of a symbolic link.
    target: Option<&'a [u8]>,
    /// The request is known to have made it.
    is_certain: bool,
}

impl<'a> Expected<'a> {
    fn of(mode: u32, creator: Creator<'a>) -> Self {
        // MKNOD without a type makes a regular file (mknod(2)).
        let kind = match mode & libc::S_IFMT {
            0 => libc::S_IFREG,
            kind => kind,
        };
        Self {
            kind,
            mode: kind | mode & 0o7777,
            creator,
            target: None,
            is_certain: false,
        }
    }
}

/// Makes an object, or finds the one that the request has made.
fn made(
    fs: &impl FileSystem,
    request: &Request<'_>,
    call: &mut Call<'_, '_, '_>,
    earlier: Interrupted,
    name: &std::ffi::CStr,
    expected: Expected<'_>,
) -> io::Result<usize> {
    match dispatch(fs, request, call) {
        Err(error) if is(&error, &[libc::EEXIST]) => {
            let parent = call.header.node();
            let entry = find_made(fs, parent, Name::new(name)?, earlier, expected, error)?;
            put(call.reply, &entry)
        }
        result => result,
    }
}

/// The entry of the object that the request has made, which is completed; `error` if it is not the
/// request's.
fn find_made(
    fs: &impl FileSystem,
    parent: NodeId,
    name: Name<'_>,
    earlier: Interrupted,
    expected: Expected<'_>,
    error: io::Error,
) -> io::Result<EntryOut> {
    let entry = fs.lookup(parent, name)?;
    let node = NodeId::new(entry.nodeid);
    let same_kind = entry.attr.mode & libc::S_IFMT == expected.kind;
    let is_empty = match (expected.kind, expected.target) {
        (libc::S_IFREG, _) => entry.attr.size == 0,
        (_, Some(target)) => {
            // Longer than any target (`PATH_MAX`).
            let mut found = [0; 4097];
            let len = fs.readlink(node, &mut found).unwrap_or(0);
            found.get(..len) == Some(target)
        }
        // Two links: nothing was made in it. Some file systems do not count, and say one.
        (libc::S_IFDIR, _) => entry.attr.nlink <= 2,
        _ => true,
    };
    let birth = birth_of(fs, node).unwrap_or_else(|| changed_at(&entry));
    let owner = GuestUid::new(entry.attr.uid);
    let is_ours = expected.is_certain
        || fs
            .possible_owners(expected.creator.caller.uid)
            .contains(&owner)
            && is_empty
            && (earlier.began..=earlier.ended).contains(&birth);
    if !(same_kind && is_ours) {
        fs.forget(node, 1);
        return Err(error);
    }
    match fs.complete(parent, node, &expected.creator, expected.mode) {
        Ok(false) => Ok(entry),
        Ok(true) => {
            let completed = fs.lookup(parent, name);
            fs.forget(node, 1);
            completed
        }
        Err(error) => {
            // The first error says why.
            let _ = match expected.kind {
                libc::S_IFDIR => fs.rmdir(parent, name),
                _ => fs.unlink(parent, name),
            };
            fs.forget(node, 1);
            Err(error)
        }
    }
}

/// Renames, or finds that the request has renamed.
fn renamed(
    fs: &impl FileSystem,
    request: &Request<'_>,
    call: &mut Call<'_, '_, '_>,
    earlier: Interrupted,
    (parent, name): (NodeId, &std::ffi::CStr),
) -> io::Result<usize> {
    match dispatch(fs, request, call) {
        Err(error) if is(&error, &[libc::ENOENT]) => {
            let Ok(entry) = fs.lookup(parent, Name::new(name)?) else {
                return Err(error);
            };
            fs.forget(NodeId::new(entry.nodeid), 1);
            match changed_at(&entry) >= earlier.began {
                true => Ok(0),
                false => Err(error),
            }
        }
        result => result,
    }
}

/// Whether the name leads to something that was made after the request began.
fn is_made_later(
    fs: &impl FileSystem,
    parent: NodeId,
    name: Name<'_>,
    earlier: Interrupted,
) -> bool {
    let Ok(entry) = fs.lookup(parent, name) else {
        return false;
    };
    let node = NodeId::new(entry.nodeid);
    let birth = birth_of(fs, node);
    fs.forget(node, 1);
    // In the same tick of the clock, the guest may have made it itself before.
    birth.is_some_and(|birth| birth > earlier.began.saturating_add(TICK))
}

fn ino_of(fs: &impl FileSystem, parent: NodeId, name: Name<'_>) -> Option<u64> {
    let entry = fs.lookup(parent, name).ok()?;
    fs.forget(NodeId::new(entry.nodeid), 1);
    Some(entry.attr.ino)
}

fn size_of_file(fs: &impl FileSystem, node: NodeId, handle: Handle) -> io::Result<u64> {
    Ok(fs.getattr(node, Some(handle))?.attr.size)
}

/// When the inode was made, in nanoseconds since the epoch; `None` if the file system does not say.
fn birth_of(fs: &impl FileSystem, node: NodeId) -> Option<i64> {
    let args = StatxIn {
        getattr_flags: GetattrFlags::empty().bits(),
        sx_mask: libc::STATX_BTIME,
        ..StatxIn::default()
    };
    let stat = fs.statx(node, &args).ok()?.stat;
    let is_known = stat.mask & libc::STATX_BTIME != 0;
    is_known.then(|| nanoseconds(stat.btime.tv_sec, stat.btime.tv_nsec))
}

fn changed_at(entry: &EntryOut) -> i64 {
    nanoseconds(entry.attr.ctime.cast_signed(), entry.attr.ctimensec)
}

fn nanoseconds(seconds: i64, nanoseconds: u32) -> i64 {
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds.into())
}

/// Whether there is something of the old name after a RENAME with these flags: what the new name
/// had, or a whiteout.
fn leaves_the_name(flags: u32) -> bool {
    flags & (libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0
}

/// Whether FALLOCATE with this mode moves data, so that twice is not the same as once.
fn moves_data(mode: u32) -> bool {
    let moving = libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE;
    mode & moving.cast_unsigned() != 0
}

fn is(error: &io::Error, errnos: &[i32]) -> bool {
    error
        .raw_os_error()
        .is_some_and(|errno| errnos.contains(&errno))
}

/// Success instead of one of these errors.
fn unless(result: io::Result<usize>, errnos: &[i32]) -> io::Result<usize> {
    match result {
        Err(error) if is(&error, errnos) => Ok(0),
        result => result,
    }
}
