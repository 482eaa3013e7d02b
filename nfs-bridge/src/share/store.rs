//! Where the inodes are that clients have handles of: the parent and the name of each, and another
//! one if it has several links.
//!
//! A daemon forgets its nodes when it restarts, and this program when it does. A handle is then
//! found again by its path. Each change is written to a log before the handle is given out, so that
//! a process that is killed leaves all that it gave out. The log is written anew when most of it is
//! of no use any more, on a thread of its own, while the store is used.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use gangplank_service::{error_chain, rate_limited};
use parking_lot::Mutex;

use super::handle::FileHandle;
use super::handle_log::{self, HandleLog, Rewrite, record};
pub use super::place_table::Place;
use super::place_table::PlaceTable;
use crate::state_log::{LogError, failed};

/// Most inodes that are remembered. Each takes about 130 bytes of memory.
///
/// When there are more, those that clients have not used for longest are forgotten: a client that
/// goes on with such a file gets ESTALE once the daemon does not know it either, and looks it up by
/// its path, as it does after the removal of a file. To refuse new files instead would stop all
/// clients, and to forget new ones would lose those in use.
const MAX_PLACES: usize = 4 << 20;

/// Inodes whose records are made at once while the log is written anew: others wait for less than a
/// millisecond.
const RECORDS_AT_ONCE: usize = 1024;

/// The places of inodes.
#[derive(Debug)]
pub struct Store {
    state: Arc<Mutex<State>>,
    /// The thread that writes the log anew.
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Locked as long as the store is used.
    _lock: Option<File>,
}

#[derive(Debug)]
struct State {
    table: PlaceTable,
    log: Option<HandleLog>,
    /// Bytes of the records of all places.
    live: u64,
    /// The log has what it need not have.
    is_long: bool,
}

impl Default for Store {
    /// A store without a log.
    fn default() -> Self {
        Self {
            state: Arc::new(Mutex::new(State::new(MAX_PLACES))),
            writer: Mutex::default(),
            _lock: None,
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The directory is in use until the log is written.
        if let Some(writer) = self.writer.get_mut().take() {
            let _ = writer.join();
        }
    }
}

impl Store {
    /// Reads the log of handles in `directory`, and writes it anew.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(directory: &Path) -> Result<Self, LogError> {
        Self::with_limit(directory, MAX_PLACES)
    }

    fn with_limit(directory: &Path, limit: usize) -> Result<Self, LogError> {
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
        let (log, records) = HandleLog::open(directory)?;
        let mut state = State::new(limit);
        for (handle, places) in records {
            state.set(handle, places);
        }
        state.log = Some(log);
        let rewrite = state.begin_rewrite();
        let state = Arc::new(Mutex::new(state));
        if let Some((rewrite, handles)) = rewrite {
            write_anew(&state, rewrite, handles).map_err(failed("write", directory))?;
        }
        Ok(Self {
            state,
            writer: Mutex::default(),
            _lock: Some(lock),
        })
    }

    /// The places of an inode, the one first that it was seen at first.
    #[must_use]
    pub fn places(&self, handle: FileHandle) -> Vec<Place> {
        self.state.lock().table.get(handle)
    }

    /// Notes that a client uses an inode.
    pub fn touch(&self, handle: FileHandle) {
        self.state.lock().table.touch(handle);
    }

    /// Remembers that an inode is in `parent` by `name`, and nowhere else.
    pub fn put(&self, handle: FileHandle, parent: FileHandle, name: &[u8]) {
        let place = place(parent, name);
        self.change(handle, |places| *places = vec![place]);
    }

    /// Remembers that an inode is in `parent` by `name`, and perhaps elsewhere.
    pub fn add(&self, handle: FileHandle, parent: FileHandle, name: &[u8]) {
        let place = place(parent, name);
        self.change(handle, |places| {
            if !places.contains(&place) {
                places.push(place);
            }
        });
    }

    /// Notes that an inode is at `to` instead of `from`.
    pub fn moved(&self, handle: FileHandle, from: &Place, to: Place) {
        self.change(handle, |places| {
            places.retain(|place| *place != to);
            match places.iter_mut().find(|place| *place == from) {
                Some(place) => *place = to,
                None => places.push(to),
            }
        });
    }

    /// Notes that an inode is not in `parent` by `name` any more, but still elsewhere. The last
    /// place stays: the other link may be in the same directory, where it is found by its number.
    pub fn unlinked(&self, handle: FileHandle, parent: FileHandle, name: &[u8]) {
        let place = place(parent, name);
        self.change(handle, |places| {
            if places.len() > 1 {
                places.retain(|other| *other != place);
            }
        });
    }

    /// Forgets an inode that was removed.
    pub fn remove(&self, handle: FileHandle) {
        self.change(handle, Vec::clear);
    }

    fn change(&self, handle: FileHandle, change: impl FnOnce(&mut Vec<Place>)) {
        let mut state = self.state.lock();
        let before = state.table.get(handle);
        let mut places = before.clone();
        change(&mut places);
        places.truncate(2);
        if places == before {
            return;
        }
        state.append(handle, &places);
        state.set(handle, places);
        if !state.is_long {
            return;
        }
        let Some((rewrite, handles)) = state.begin_rewrite() else {
            // The thread that writes it does so once more.
            return;
        };
        let shared = Arc::clone(&self.state);
        let begun = thread::Builder::new()
            .name("nfs_log".to_owned())
            .spawn(move || write_until_short(&shared, rewrite, handles));
        match begun {
            Ok(writer) => *self.writer.lock() = Some(writer),
            Err(error) => {
                if let Some(log) = &mut state.log {
                    drop(warned(log.finish(Err(error))));
                }
            }
        }
    }
}

/// Writes the log anew, and once more if it has become long meanwhile.
fn write_until_short(state: &Mutex<State>, rewrite: Rewrite, handles: Vec<(u64, FileHandle)>) {
    let mut next = Some((rewrite, handles));
    while let Some((rewrite, handles)) = next {
        let written = warned(write_anew(state, rewrite, handles));
        let mut state = state.lock();
        let again = state.is_long && written.is_ok();
        next = again.then(|| state.begin_rewrite()).flatten();
    }
}

/// Writes the log anew with the places of `handles`, each behind the time of its last use.
fn write_anew(
    state: &Mutex<State>,
    mut rewrite: Rewrite,
    mut handles: Vec<(u64, FileHandle)>,
) -> io::Result<()> {
    // Those that were used last are read last, and so are kept longest.
    handles.sort_unstable_by_key(|(used, _)| *used);
    let mut write = || {
        for some in handles.chunks(RECORDS_AT_ONCE) {
            let state = state.lock();
            let mut records = Vec::new();
            for (_, handle) in some {
                // One that has gone since was added as such.
                if let Some(places) = state.table.peek(*handle) {
                    records.extend(record(*handle, places));
                }
            }
            drop(state);
            rewrite.write(&records)?;
        }
        if let Some(log) = &mut state.lock().log {
            log.catch_up(&mut rewrite)?;
        }
        rewrite.commit()
    };
    let written = write();
    match &mut state.lock().log {
        Some(log) => log.finish(written),
        None => written,
    }
}

/// Tells that the log could not be written anew.
fn warned(written: io::Result<()>) -> io::Result<()> {
    written.inspect_err(|error| {
        rate_limited!(
            warn,
            "the log of file handles cannot be shortened: {}",
            error_chain(error)
        );
    })
}

fn place(parent: FileHandle, name: &[u8]) -> Place {
    Place {
        parent,
        name: name.into(),
    }
}

/// Bytes of an inode's record in the log; 0 if it has none.
fn record_len(places: &[Place]) -> u64 {
    match places {
        [] => 0,
        places => u64::try_from(handle_log::record_len(places)).unwrap_or(0),
    }
}

impl State {
    fn new(limit: usize) -> Self {
        Self {
            table: PlaceTable::new(limit),
            log: None,
            live: 0,
            is_long: false,
        }
    }

    /// Changes the places of an inode in memory.
    fn set(&mut self, handle: FileHandle, places: Vec<Place>) {
        let before = self.table.get(handle);
        self.live += record_len(&places);
        self.live -= record_len(&before);
        self.table.set(handle, places);
        let forgotten = self.table.evict();
        if forgotten.is_empty() {
            return;
        }
        for places in &forgotten {
            self.live -= record_len(places);
        }
        rate_limited!(
            warn,
            "the table of file handles is full: {} are forgotten that clients have not used for \
             longest",
            forgotten.len()
        );
        // In the log, too, since it does not tell which are used.
        self.is_long = true;
    }

    /// Changes the places of an inode in the log, before they change in memory.
    fn append(&mut self, handle: FileHandle, places: &[Place]) {
        let Some(log) = &mut self.log else { return };
        self.is_long |= log.is_long(self.live);
        if let Err(error) = log.append(&record(handle, places.iter())) {
            rate_limited!(
                warn,
                "the log of file handles cannot be written, and new handles end with this \
                 program: {}",
                error_chain(&error)
            );
        }
    }

    /// Begins to write the log anew, if there is one and that has not begun: with what is to be
    /// written.
    fn begin_rewrite(&mut self) -> Option<(Rewrite, Vec<(u64, FileHandle)>)> {
        let rewrite = self.log.as_mut()?.begin()?;
        self.is_long = false;
        Some((rewrite, self.table.handles()))
    }
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

    /// Waits until the log is not being written anew.
    fn wait_for_writer(store: &Store) {
        if let Some(writer) = store.writer.lock().take() {
            writer.join().unwrap();
        }
    }

    /// What is used goes on while the log is written anew, and is in it afterwards.
    #[test]
    fn a_store_is_used_while_its_log_is_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        for ino in 2..1000 {
            store.put(handle(ino), handle(1), b"before");
        }
        let begun = store.state.lock().begin_rewrite();
        let (rewrite, handles) = begun.unwrap();
        store.put(handle(2), handle(1), b"meanwhile");
        store.remove(handle(3));
        write_anew(&store.state, rewrite, handles).unwrap();
        store.put(handle(4), handle(1), b"after");
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.places(handle(2)), [place(handle(1), b"meanwhile")]);
        assert_eq!(store.places(handle(3)), []);
        assert_eq!(store.places(handle(4)), [place(handle(1), b"after")]);
        assert_eq!(store.places(handle(999)), [place(handle(1), b"before")]);
    }

    #[test]
    fn places_survive_the_end_of_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put(handle(2), handle(1), b"directory");
        store.put(handle(3), handle(2), b"\xff no UTF-8");
        store.put(handle(4), handle(2), b"removed");
        store.put(handle(3), handle(1), b"moved");
        store.add(handle(5), handle(1), b"one");
        store.add(handle(5), handle(2), b"two");
        store.remove(handle(4));
        drop(store);
        for _ in 0..2 {
            let store = Store::open(directory.path()).unwrap();
            assert_eq!(store.places(handle(2)), [place(handle(1), b"directory")]);
            assert_eq!(store.places(handle(3)), [place(handle(1), b"moved")]);
            assert_eq!(store.places(handle(4)), []);
            let both = [place(handle(1), b"one"), place(handle(2), b"two")];
            assert_eq!(store.places(handle(5)), both);
        }
    }

    #[test]
    fn links_of_a_file_are_known_as_they_come_and_go() {
        let store = Store::default();
        let at = |name: &[u8]| place(handle(1), name);
        let file = handle(2);
        for name in [b"a", b"b", b"a", b"c"] {
            store.add(file, handle(1), name);
        }
        // Two are remembered, so that names that come in turns are not written each time.
        assert_eq!(store.places(file), [at(b"a"), at(b"b")]);
        store.unlinked(file, handle(1), b"c");
        store.unlinked(file, handle(1), b"a");
        assert_eq!(store.places(file), [at(b"b")]);
        store.unlinked(file, handle(1), b"b");
        assert_eq!(store.places(file), [at(b"b")], "the only one that is known");
        store.add(file, handle(1), b"d");
        store.moved(file, &at(b"b"), at(b"e"));
        assert_eq!(store.places(file), [at(b"e"), at(b"d")]);
        store.moved(file, &at(b"e"), at(b"d"));
        assert_eq!(store.places(file), [at(b"d")]);
        store.remove(file);
        assert_eq!(store.places(file), []);
        store.moved(file, &at(b"x"), at(b"y"));
        assert_eq!(store.places(file), [at(b"y")]);
    }

    #[test]
    fn the_log_does_not_grow_with_changes_that_mean_nothing_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        store.put(handle(2), handle(1), b"kept");
        let size = || {
            let files = std::fs::read_dir(directory.path()).unwrap();
            files
                .map(|file| file.unwrap().metadata().unwrap().len())
                .sum::<u64>()
        };
        let mut largest = 0;
        for number in 0..30_000_u64 {
            store.put(handle(3), handle(1), number.to_string().as_bytes());
            store.put(handle(number + 4), handle(1), b"short-lived");
            store.remove(handle(number + 4));
            if number % 1000 == 0 {
                wait_for_writer(&store);
                largest = size().max(largest);
            }
        }
        assert!((1 << 19..2 << 20).contains(&largest), "{largest}");
        drop(store);
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.places(handle(2)), [place(handle(1), b"kept")]);
        assert_eq!(store.places(handle(3)), [place(handle(1), b"29999")]);
        assert_eq!(store.state.lock().table.len(), 2);
        assert!(size() < 1000, "{}", size());
    }

    #[test]
    fn a_full_store_keeps_what_is_used_and_takes_what_is_new_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::with_limit(directory.path(), 1000).unwrap();
        for ino in 2..10_000 {
            store.put(handle(ino), handle(1), b"name");
            store.touch(handle(2));
        }
        let check = |store: &Store| {
            assert_eq!(store.places(handle(2)).len(), 1);
            assert_eq!(store.places(handle(9999)).len(), 1);
            assert_eq!(store.places(handle(3)), []);
            assert!(store.state.lock().table.len() <= 1000);
        };
        check(&store);
        drop(store);
        check(&Store::with_limit(directory.path(), 1000).unwrap());
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
