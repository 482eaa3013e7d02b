//! Requests of the process that wakes the guest's watchers.
//!
//! It makes system calls after which the guest's kernel tells watchers of a change, and which reach
//! the daemon as changes. None of them changes anything: what they ask for has happened, or they
//! fail. By writing a word to the file of changes, the process chooses what names lead to.

use std::ffi::CStr;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use gangplank_fuse::{EntryOut, NodeId, OpenIn, Operation, SetattrValid};

use super::super::dispatch::Call;
use super::super::file_system::FileSystem;
use super::super::name::Name;
use super::super::reply::put;
use super::{Events, node};

/// What names lead to for the waker.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum View {
    /// What they lead to on the host.
    #[default]
    Current,
    /// The inode that they led to when the guest looked them up last.
    Earlier,
    /// No name exists, so that the guest's kernel creates it.
    Nothing,
    /// A name that does not exist leads to an empty file, or directory, so that the guest's kernel
    /// removes it.
    RemovedFile,
    /// As before.
    RemovedDirectory,
}

impl View {
    /// The view that a word stands for.
    pub(super) fn from_word(word: &[u8]) -> Option<Self> {
        Some(match word {
            b"current" => Self::Current,
            b"earlier" => Self::Earlier,
            b"nothing" => Self::Nothing,
            b"removed" => Self::RemovedFile,
            b"removed/" => Self::RemovedDirectory,
            _ => return None,
        })
    }
}

/// Serves a request of the waker. `None` if it is served like anybody's.
pub(super) fn serve(
    events: &Events,
    fs: &impl FileSystem,
    operation: &Operation<'_>,
    call: &mut Call<'_, '_, '_>,
) -> Option<io::Result<usize>> {
    use Operation as Op;
    let node = call.header.node();
    Some(match operation {
        Op::Lookup { name } => match events.view() {
            View::Current => return None,
            View::Earlier => earlier(events, fs, node, name)
                .map_or_else(|| plain(fs, node, name), Ok)
                .and_then(|entry| put(call.reply, &entry)),
            View::Nothing => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            view => removed(fs, node, name, view == View::RemovedDirectory)
                .and_then(|entry| put(call.reply, &entry)),
        },
        // The host has created it.
        Op::Mknod { args, name } => created(events, fs, (node, name), args.mode, call),
        Op::Mkdir { name, .. } => created(events, fs, (node, name), libc::S_IFDIR, call),
        Op::Symlink { name, .. } => created(events, fs, (node, name), libc::S_IFLNK, call),
        // The host has removed it.
        Op::Unlink { name } | Op::Rmdir { name } => match find(fs, node, name) {
            Ok(None) => Ok(0),
            Ok(Some(entry)) => {
                fs.forget(NodeId::new(entry.nodeid), 1);
                Err(io::Error::from_raw_os_error(libc::EBUSY))
            }
            Err(error) => Err(error),
        },
        Op::Setattr(args) => {
            let valid = SetattrValid::from_bits_retain(args.valid);
            let changes =
                SetattrValid::MODE | SetattrValid::UID | SetattrValid::GID | SetattrValid::SIZE;
            if valid.intersects(changes) {
                return Some(Err(io::Error::from_raw_os_error(libc::EPERM)));
            }
            fs.getattr(node, None)
                .and_then(|attr| put(call.reply, &attr))
        }
        Op::Open(args) => {
            let flags = libc::O_ACCMODE | libc::O_TRUNC | libc::O_APPEND;
            let flags = args.flags & !flags.cast_unsigned();
            fs.open(node, &OpenIn { flags, ..*args })
                .and_then(|opened| put(call.reply, &opened))
        }
        Op::Create { .. }
        | Op::Tmpfile { .. }
        | Op::Link { .. }
        | Op::Rename { .. }
        | Op::Rename2 { .. }
        | Op::Setxattr { .. }
        | Op::Removexattr { .. } => Err(io::Error::from_raw_os_error(libc::EPERM)),
        _ => return None,
    })
}

/// Looks up a name, which counts as one lookup if it is found.
fn find(fs: &impl FileSystem, parent: NodeId, name: &CStr) -> io::Result<Option<EntryOut>> {
    match fs.lookup(parent, Name::new(name)?) {
        Ok(entry) if entry.nodeid == 0 => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        found => found.map(Some),
    }
}

/// Finds what the host has created, in the request's `mode`.
///
/// # Errors
/// EINVAL: it is of another type.
fn created(
    events: &Events,
    fs: &impl FileSystem,
    (parent, name): (NodeId, &CStr),
    mode: u32,
    call: &mut Call<'_, '_, '_>,
) -> io::Result<usize> {
    let found = find(fs, parent, name)?;
    let entry = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    let node = NodeId::new(entry.nodeid);
    if (entry.attr.mode ^ mode) & libc::S_IFMT != 0 {
        fs.forget(node, 1);
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    events.note_name(parent, name, node);
    put(call.reply, &entry)
}

fn plain(fs: &impl FileSystem, parent: NodeId, name: &CStr) -> io::Result<EntryOut> {
    fs.lookup(parent, Name::new(name)?)
}

/// The inode that the name led to, if it leads to another one now.
fn earlier(events: &Events, fs: &impl FileSystem, parent: NodeId, name: &CStr) -> Option<EntryOut> {
    let earlier = events.noted(parent, name)?;
    if let Some(current) = find(fs, parent, name).ok()? {
        let current = NodeId::new(current.nodeid);
        fs.forget(current, 1);
        if current == earlier {
            return None;
        }
    }
    let entry = fs.known_entry(earlier).ok()?;
    Some(EntryOut {
        entry_valid: 0,
        entry_valid_nsec: 0,
        ..entry
    })
}

/// What is to be removed instead of a name that does not exist.
fn removed(
    fs: &impl FileSystem,
    parent: NodeId,
    name: &CStr,
    is_directory: bool,
) -> io::Result<EntryOut> {
    static LAST: AtomicU32 = AtomicU32::new(0);
    if let Some(current) = find(fs, parent, name)? {
        return Ok(current);
    }
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    Ok(node::entry(node::gone(number, is_directory)))
}
