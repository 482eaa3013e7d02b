//! Where the inodes are that clients have handles of: the parent and the name of each.
//!
//! A daemon forgets its nodes when it restarts, and this program when it does. A handle is then
//! found again by its path. The store is a log in a file, so that a process that is killed leaves
//! all that it gave out. Each record is written before the handle is given out:
//!
//! ```text
//!   length of what follows the check   u32, big-endian
//!   check                              u32, big-endian, of what follows
//!   inode                              export u32, ino u64, birth u64
//!   parent                             ino u64, birth u64; absent in a removal
//!   name                               the remaining bytes
//! ```
//!
//! At the start the log is written anew without what was removed or moved since. A record that a
//! crash of the host cut off ends the log.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use gangplank_service::fnv::checksum;
use gangplank_service::{error_chain, rate_limited};
use parking_lot::Mutex;

use super::handle::FileHandle;
use crate::state_log::{self, LogError, failed};
use crate::xdr::Reader;

/// The first bytes of the log: this layout.
const MAGIC: &[u8] = b"gangplank-nfs handles 1\n";

/// Bytes of an inode in a record.
const INODE: usize = 20;

/// Longest record, in bytes, with a name of 255 bytes and room for longer ones.
const MAX_RECORD: usize = 4096;

/// Most inodes that are remembered. Each takes about 100 bytes of memory.
const MAX_PLACES: usize = 4 << 20;

/// A directory and a name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The directory, in the same export.
    pub parent: FileHandle,
    /// The name.
    pub name: Box<[u8]>,
}

/// The places of inodes.
#[derive(Debug, Default)]
pub struct Store {
    state: Mutex<State>,
    /// Locked as long as the store is used.
    _lock: Option<File>,
}

#[derive(Debug, Default)]
struct State {
    places: HashMap<FileHandle, Place>,
    log: Option<File>,
    /// The log lacks what could not be written.
    is_incomplete: bool,
}

impl Store {
    /// Reads the log `handles` in `directory`, and writes it anew.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(directory: &Path) -> Result<Self, LogError> {
        let path = directory.join("handles");
        // A file of its own, because the log is replaced.
        let lock_path = directory.join("handles.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(LogError::InUse(lock_path)),
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(failed("lock", &lock_path)(source));
            }
        }
        let places = match state_log::read(&path)? {
            None => HashMap::new(),
            Some(bytes) => match bytes.strip_prefix(MAGIC) {
                Some(records) => read_log(records),
                None => {
                    let expected = "file handles";
                    return Err(LogError::Foreign { path, expected });
                }
            },
        };
        let log = state_log::replace(&path, |new| write_log(new, &places))?;
        let state = State {
            places,
            log: Some(log),
            is_incomplete: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            _lock: Some(lock),
        })
    }

    /// The place of an inode.
    #[must_use]
    pub fn place(&self, handle: FileHandle) -> Option<Place> {
        self.state.lock().places.get(&handle).cloned()
    }

    /// Remembers that `handle` is in `parent` by `name`.
    pub fn put(&self, handle: FileHandle, parent: FileHandle, name: &[u8]) {
        let mut state = self.state.lock();
        let known = state.places.get(&handle);
        if known.is_some_and(|place| place.parent == parent && *place.name == *name) {
            return;
        }
        if known.is_none() && state.places.len() >= MAX_PLACES {
            rate_limited!(
                warn,
                "{MAX_PLACES} file handles are remembered; further ones end with the daemon"
            );
            return;
        }
        let name = name.into();
        state.append(handle, Some(&Place { parent, name }));
    }

    /// Forgets an inode that was removed.
    pub fn remove(&self, handle: FileHandle) {
        let mut state = self.state.lock();
        if state.places.contains_key(&handle) {
            state.append(handle, None);
        }
    }
}

impl State {
    /// Changes the place of an inode, in memory and in the log.
    fn append(&mut self, handle: FileHandle, place: Option<&Place>) {
        if let Some(log) = &mut self.log
            && !self.is_incomplete
            && let Err(error) = log.write_all(&record(handle, place))
        {
            // What follows a record that is cut off would not be read.
            self.is_incomplete = true;
            rate_limited!(
                warn,
                "the log of file handles cannot be written, and new handles end with this \
                 program: {}",
                error_chain(&error)
            );
        }
        match place {
            Some(place) => self.places.insert(handle, place.clone()),
            None => self.places.remove(&handle),
        };
    }
}

fn record(handle: FileHandle, place: Option<&Place>) -> Vec<u8> {
    let mut content = Vec::with_capacity(64);
    content.extend(handle.export.to_be_bytes());
    content.extend(handle.ino.to_be_bytes());
    content.extend(handle.birth.to_be_bytes());
    if let Some(place) = place {
        content.extend(place.parent.ino.to_be_bytes());
        content.extend(place.parent.birth.to_be_bytes());
        content.extend(&*place.name);
    }
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let check = checksum(&content).to_be_bytes();
    [&len.to_be_bytes()[..], &check, &content].concat()
}

/// The places in a log, up to its end or the first damaged record.
fn read_log(bytes: &[u8]) -> HashMap<FileHandle, Place> {
    let mut places = HashMap::new();
    let mut rest = bytes;
    while let Some((handle, place, after)) = read_record(rest) {
        rest = after;
        match place {
            Some(place) if places.len() < MAX_PLACES => drop(places.insert(handle, place)),
            Some(_) => {}
            None => drop(places.remove(&handle)),
        }
    }
    places
}

fn read_record(bytes: &[u8]) -> Option<(FileHandle, Option<Place>, &[u8])> {
    let mut reader = Reader::new(bytes);
    let len = usize::try_from(reader.u32().ok()?).ok()?;
    let check = reader.u32().ok()?;
    let (content, after) = reader.rest().split_at_checked(len)?;
    if !(INODE..=MAX_RECORD).contains(&len) || checksum(content) != check {
        return None;
    }
    let mut reader = Reader::new(content);
    let handle = FileHandle {
        export: reader.u32().ok()?,
        ino: reader.u64().ok()?,
        birth: reader.u64().ok()?,
    };
    if reader.rest().is_empty() {
        return Some((handle, None, after));
    }
    let parent = FileHandle {
        export: handle.export,
        ino: reader.u64().ok()?,
        birth: reader.u64().ok()?,
    };
    let name = reader.rest().into();
    Some((handle, Some(Place { parent, name }), after))
}

fn write_log(path: &Path, places: &HashMap<FileHandle, Place>) -> io::Result<File> {
    let file = File::create(path)?;
    let mut writer = io::BufWriter::new(&file);
    writer.write_all(MAGIC)?;
    for (handle, place) in places {
        writer.write_all(&record(*handle, Some(place)))?;
    }
    writer.flush()?;
    drop(writer);
    file.sync_data()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(ino: u64) -> FileHandle {
        FileHandle {
            export: 1,
            ino,
            birth: ino * 7,
        }
    }

    #[test]
    fn places_survive_the_end_of_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put(handle(2), handle(1), b"directory");
        store.put(handle(3), handle(2), b"\xff no UTF-8");
        store.put(handle(4), handle(2), b"removed");
        store.put(handle(3), handle(1), b"moved");
        store.remove(handle(4));
        drop(store);
        for _ in 0..2 {
            let store = Store::open(directory.path()).unwrap();
            assert_eq!(&*store.place(handle(2)).unwrap().name, b"directory");
            let moved = store.place(handle(3)).unwrap();
            assert_eq!((moved.parent, &*moved.name), (handle(1), &b"moved"[..]));
            assert_eq!(store.place(handle(4)), None);
        }
    }

    #[test]
    fn a_record_that_was_cut_off_ends_the_log_and_loses_nothing_before() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put(handle(2), handle(1), b"whole");
        store.put(handle(3), handle(1), b"cut off");
        drop(store);
        let path = directory.path().join("handles");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(store.place(handle(2)).is_some());
        assert_eq!(store.place(handle(3)), None);
    }

    #[test]
    fn a_log_in_use_and_a_foreign_file_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _store = Store::open(directory.path()).unwrap();
        let again = Store::open(directory.path());
        assert!(matches!(again, Err(LogError::InUse(_))), "{again:?}");
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("handles"), "something else").unwrap();
        let foreign = Store::open(other.path());
        assert!(matches!(foreign, Err(LogError::Foreign { .. })));
    }
}
