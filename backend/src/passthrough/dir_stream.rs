//! The entries of an open directory, read from the host as the guest lists them.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::mounts::MountIndex;
use crate::sys::file;

/// Size of the getdents64(2) buffer in bytes: more than 1,000 names of average length.
const BUFFER_BYTES: usize = 32 * 1024;

/// Limit of directory handles per guest that keep entries between requests.
const MAX_PENDING: usize = 64;

thread_local! {
    /// The getdents64(2) buffer. Each thread serves one request at a time.
    static DIRENT_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER_BYTES].into());
}

/// Number of a guest's directory handles that keep entries.
#[derive(Debug, Clone, Default)]
pub(super) struct PendingCount(Arc<AtomicUsize>);

/// Entries read from the host that the guest has not received yet. Counted while they exist.
#[derive(Debug)]
struct PendingEntries {
    bytes: Box<[u8]>,
    next: usize,
    kept: PendingCount,
}

impl PendingEntries {
    /// Copies `bytes`; `None` if the guest has reached [`MAX_PENDING`].
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

/// How far an open directory is listed.
#[derive(Debug)]
pub(super) struct DirStream {
    /// The directory's mount.
    pub(super) mount: MountIndex,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    pending: Option<PendingEntries>,
    /// Cookie at which the listing continues: that of the next pending entry, or any if none is
    /// pending.
    cookie: u64,
    /// Cookie of the descriptor's position.
    position: u64,
}

impl DirStream {
    /// A listing at its start, of a directory on `mount`.
    pub(super) fn new(mount: MountIndex) -> Self {
        Self {
            mount,
            progress: Mutex::default(),
        }
    }

    /// A listing that another process has begun: where the descriptor stands is not known.
    pub(super) fn resumed(mount: MountIndex) -> Self {
        Self {
            mount,
            progress: Mutex::new(Progress {
                // No directory has an entry with this cookie (`loff_t` is signed).
                position: u64::MAX,
                ..Progress::default()
            }),
        }
    }

    /// Emits entries from `cookie` on, until the reply is full or the entries of one getdents64(2)
    /// call are used up.
    pub(super) fn list(
        &self,
        directory: BorrowedFd<'_>,
        pending: &PendingCount,
        cookie: u64,
        mut emit: impl FnMut(HostDirent<'_>) -> Emit,
    ) -> io::Result<()> {
        let mut progress = self.progress.lock();
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
            file::seek_directory(directory, progress.cookie)?;
            progress.position = progress.cookie;
        }
        DIRENT_BUFFER.with_borrow_mut(|buffer| {
            let length = file::read_directory(directory, buffer)?;
            let bytes = buffer.get(..length).unwrap_or(&[]);
            progress.position = last_cookie(bytes).unwrap_or(progress.cookie);
            let served = emit_entries(bytes, &mut progress.cookie, &mut emit)?;
            let rest = bytes.get(served..).unwrap_or(&[]);
            if !rest.is_empty() {
                progress.pending = PendingEntries::new(pending, rest);
            }
            Ok(())
        })
    }
}

/// The names in a directory that was just opened, without "." and "..".
///
/// # Errors
/// Those of getdents64(2).
pub(super) fn names(directory: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    DIRENT_BUFFER.with_borrow_mut(|buffer| {
        loop {
            let length = file::read_directory(directory, buffer)?;
            let mut bytes = buffer.get(..length).unwrap_or(&[]);
            if bytes.is_empty() {
                return Ok(names);
            }
            while let Some(entry) = HostDirent::decode(bytes) {
                if ![c".", c".."].contains(&entry.name) {
                    names.push(entry.name.to_owned());
                }
                bytes = bytes.get(entry.length..).unwrap_or(&[]);
            }
        }
    })
}

/// One entry from the host (`struct linux_dirent64`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostDirent<'a> {
    /// Inode number.
    pub(super) ino: u64,
    /// Cookie of the next entry.
    pub(super) cookie: u64,
    /// Type (`DT_*`).
    pub(super) kind: u8,
    /// Name.
    pub(super) name: &'a CStr,
    /// Length of the record in bytes.
    length: usize,
}

impl<'a> HostDirent<'a> {
    /// Bytes of the fixed part: inode number, cookie, length, type.
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

/// Whether an entry was added to the reply.
pub(super) enum Emit {
    /// The entry was added.
    Done,
    /// The entry does not fit.
    Full,
}

/// Emits entries until the reply is full, advances the cookie and returns the number of bytes used.
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
    // For the same reason, entries that cannot be decoded must not be skipped.
    if served == 0 && !bytes.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    Ok(served)
}

/// The cookie after the last of these entries.
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
