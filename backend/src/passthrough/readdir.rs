//! Listing directories.
//!
//! The host is asked for many entries at a time. What a reply has no room for is kept with the handle and served to
//! the next request. A guest that opens thousands of directories gets a few such leftovers kept; the other listings
//! work too, with more calls.

use std::cell::RefCell;
use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gangplank_fuse::dir::DirentWriter;
use gangplank_fuse::{EntryOut, NodeId, ReadIn};

use super::fs::{Node, PassthroughFs};
use super::mounts::MountIndex;
use super::open_files::{OpenFile, bad_handle};
use crate::session::Name;
use crate::sys::file;

/// Bytes of entries asked of the host at a time: more than 1,000 names of average length.
const BUFFER_BYTES: usize = 32 * 1024;

/// Leftovers that one guest's listings may keep between requests.
const MAX_PENDING: usize = 64;

thread_local! {
    /// Where the host puts entries. Each thread serves one request at a time.
    static DIRENT_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into());
}

/// How many leftovers a guest's listings keep.
#[derive(Debug, Clone, Default)]
pub(super) struct PendingCount(Arc<AtomicUsize>);

/// Entries that the host has given and the guest has not got yet; counted as long as they are there.
#[derive(Debug)]
struct PendingEntries {
    bytes: Box<[u8]>,
    next: usize,
    kept: PendingCount,
}

impl PendingEntries {
    /// A copy of `bytes`; `None` where enough is kept already.
    fn new(buffers: &PendingCount, bytes: &[u8]) -> Option<Self> {
        if buffers.0.fetch_add(1, Ordering::Relaxed) >= MAX_PENDING {
            buffers.0.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self {
            bytes: bytes.into(),
            next: 0,
            kept: buffers.clone(),
        })
    }
}

impl Drop for PendingEntries {
    fn drop(&mut self) {
        self.kept.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far an open directory was listed.
#[derive(Debug)]
pub(super) struct DirStream {
    mount: MountIndex,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    pending: Option<PendingEntries>,
    /// Cookie where the listing goes on: at the leftover's next entry, or without one anywhere.
    cookie: u64,
    /// Cookie at the descriptor's position.
    position: u64,
}

impl DirStream {
    /// A listing that has not begun, of a directory at `place`.
    pub(super) fn new(mount: MountIndex) -> Self {
        Self {
            mount,
            progress: Mutex::default(),
        }
    }
}

/// One entry as the host gives it (`struct linux_dirent64`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HostDirent<'a> {
    ino: u64,
    /// Where the listing goes on after it.
    cookie: u64,
    kind: u8,
    name: &'a CStr,
    /// Bytes that the entry takes.
    length: usize,
}

impl<'a> HostDirent<'a> {
    /// Fixed part of an entry: number, cookie, length, type.
    const HEAD: usize = 19;

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (ino, rest) = bytes.split_first_chunk()?;
        let (cookie, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (kind, _) = rest.split_first()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let name = bytes.get(Self::HEAD..length)?;
        Some(Self {
            ino: u64::from_ne_bytes(*ino),
            cookie: u64::from_ne_bytes(*cookie),
            kind: *kind,
            name: CStr::from_bytes_until_nul(name).ok()?,
            length,
        })
    }
}

/// Whether an entry was handed to the guest or found no room.
enum Emit {
    Done,
    Full,
}

impl PassthroughFs {
    /// Lists names and types.
    pub(super) fn do_readdir(
        &self,
        id: NodeId,
        args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()> {
        let file = self.file_to_read(args.fh, id)?;
        let dir_stream = file.dir_stream.as_deref().ok_or_else(bad_handle)?;
        self.list(&file, dir_stream, args.offset, |entry| {
            let number = self.guest_ino(entry.ino, dir_stream.mount);
            let name = entry.name.to_bytes();
            match entries.push(number, entry.cookie, entry.kind.into(), name) {
                Ok(()) => Emit::Done,
                Err(_) => Emit::Full,
            }
        })
    }

    /// Lists names and looks each of them up.
    pub(super) fn do_readdirplus(
        &self,
        id: NodeId,
        args: &ReadIn,
        entries: &mut DirentWriter<'_>,
    ) -> io::Result<()> {
        let file = self.file_to_read(args.fh, id)?;
        let dir_stream = file.dir_stream.as_deref().ok_or_else(bad_handle)?;
        let parent = self.directory(id)?;
        self.list(&file, dir_stream, args.offset, |entry| {
            let name = entry.name.to_bytes();
            // Before the look-up, which would have to be undone.
            if !entries.fits_plus(name.len()) {
                return Emit::Full;
            }
            let found = self.look_up_listed(&parent, entry.name);
            let number = match found.nodeid {
                0 => self.guest_ino(entry.ino, dir_stream.mount),
                _ => found.attr.ino,
            };
            match entries.push_plus(&found, number, entry.cookie, entry.kind.into(), name) {
                Ok(()) => Emit::Done,
                Err(_) => {
                    self.inodes.forget(NodeId::new(found.nodeid), 1);
                    Emit::Full
                }
            }
        })
    }

    /// Looks up a listed name. The guest looks up by itself those that get node id 0: `.` and `..`, and what could not
    /// be looked up here.
    fn look_up_listed(&self, parent: &Node, name: &CStr) -> EntryOut {
        // Half a listing would tell the guest nothing; one that looks up by itself learns the error.
        Name::new(name)
            .ok()
            .and_then(|name| self.look_up_in(parent, name.as_c_str()).ok())
            .unwrap_or_default()
    }

    /// Serves entries from `cookie` on until one finds no room, or what the host gives at a time is used up.
    fn list(
        &self,
        file: &OpenFile,
        dir_stream: &DirStream,
        cookie: u64,
        mut emit: impl FnMut(HostDirent<'_>) -> Emit,
    ) -> io::Result<()> {
        let mut progress = dir_stream
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let progress = &mut *progress;
        if progress.cookie != cookie {
            progress.pending = None;
            progress.cookie = cookie;
        }
        if let Some(mut rest) = progress.pending.take() {
            let unsent = rest.bytes.get(rest.next..).unwrap_or(&[]);
            let served = emit_entries(unsent, &mut progress.cookie, &mut emit)?;
            rest.next += served;
            if rest.next < rest.bytes.len() {
                progress.pending = Some(rest);
            }
            return Ok(());
        }
        if progress.position != progress.cookie {
            file::seek_directory(file.as_fd(), progress.cookie)?;
            progress.position = progress.cookie;
        }
        DIRENT_BUFFER.with_borrow_mut(|buffer| {
            let length = file::read_directory(file.as_fd(), buffer)?;
            let bytes = buffer.get(..length).unwrap_or(&[]);
            progress.position = last_cookie(bytes).unwrap_or(progress.cookie);
            let served = emit_entries(bytes, &mut progress.cookie, &mut emit)?;
            let rest = bytes.get(served..).unwrap_or(&[]);
            if !rest.is_empty() {
                progress.pending = PendingEntries::new(&self.pending_listings, rest);
            }
            Ok(())
        })
    }
}

/// Serves entries until one finds no room, moves the cookie on and returns how many bytes were served.
fn emit_entries(
    bytes: &[u8],
    cookie: &mut u64,
    emit: &mut impl FnMut(HostDirent<'_>) -> Emit,
) -> io::Result<usize> {
    let mut served = 0;
    while let Some(entry) = bytes.get(served..).and_then(HostDirent::decode) {
        let (length, next) = (entry.length, entry.cookie);
        match emit(entry) {
            Emit::Done => {
                served += length;
                *cookie = next;
            }
            // An empty reply would mean the end of the directory.
            Emit::Full if served == 0 => {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            Emit::Full => return Ok(served),
        }
    }
    // For the same reason, entries that cannot be read must not be passed over.
    if served == 0 && !bytes.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    Ok(served)
}

/// Where the listing goes on after the last of these entries.
fn last_cookie(mut bytes: &[u8]) -> Option<u64> {
    let mut last = None;
    while let Some(entry) = HostDirent::decode(bytes) {
        last = Some(entry.cookie);
        bytes = bytes.get(entry.length..)?;
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_decoded_and_rubbish_is_not() {
        let mut bytes = Vec::new();
        bytes.extend(7u64.to_ne_bytes());
        bytes.extend(9u64.to_ne_bytes());
        bytes.extend(24u16.to_ne_bytes());
        bytes.push(libc::DT_DIR);
        bytes.extend(b"abc\0\0");
        let entry = HostDirent::decode(&bytes).expect("an entry");
        assert_eq!((entry.ino, entry.cookie, entry.kind), (7, 9, libc::DT_DIR));
        assert_eq!((entry.name, entry.length), (c"abc", 24));
        assert_eq!(last_cookie(&bytes), Some(9));
        for length in 0..bytes.len() {
            assert_eq!(HostDirent::decode(&bytes[..length]), None, "{length} bytes");
        }
        bytes[16..18].copy_from_slice(&5u16.to_ne_bytes());
        assert_eq!(HostDirent::decode(&bytes), None);
    }
}
