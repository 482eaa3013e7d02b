//! A client's open files by number.
//!
//! A number has no meaning for other clients. Two numbers may stand for one open file (dup2), which
//! is closed with the last of them. If the daemon was lost, its files are opened again by name, if
//! the name still leads to the same inode. The client cannot do that, since its kernel has bound
//! the number to an inode.
//!
//! The client's kernel closes a file when it evicts the inode, which may be never. So a file that
//! was not used for long is parked: closed at the daemon, whose descriptors are shared by all, and
//! opened again when it is used.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gangplank_fuse::Attr;
use parking_lot::{Mutex, MutexGuard};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::backend::Backend;
use super::backend_file::{BackendFile, OpenCount};
use super::failure::{Failure, Result};
use super::fd_numbers::FdRange;
use super::file_identity::BirthTime;
use super::open_flags as flag;
use super::path::Path;
use super::path_cache::CachedPath;
use super::resolver::Last;

/// An open file, independent of the connection to the daemon.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// The flags for opening it again: access mode and `O_APPEND`.
    flags: u32,
    ino: u64,
    kind: FileType,
    birth_time: Option<BirthTime>,
    state: Mutex<State>,
    /// The count of its client.
    count: OpenCount,
    /// The time of its last use, by its client's clock.
    used: AtomicU64,
    /// Data was written since the last sync.
    unsynced: AtomicBool,
    /// An error of the daemon that the client was not told yet.
    deferred_error: Mutex<Option<Errno>>,
}

#[derive(Debug)]
struct State {
    path: CachedPath,
    backend_file: Arc<BackendFile>,
}

impl OpenFile {
    /// The file `backend_file`, which was found at `path`.
    pub(super) fn new(
        path: CachedPath,
        attr: &Attr,
        birth_time: Option<BirthTime>,
        flags: u32,
        backend_file: BackendFile,
        count: &OpenCount,
    ) -> Self {
        Self {
            flags: flags & (flag::ACCESS | flag::APPEND),
            ino: attr.ino,
            kind: FileType::from_raw_mode(attr.mode),
            birth_time,
            state: Mutex::new(State {
                path,
                backend_file: Arc::new(backend_file),
            }),
            count: count.clone(),
            used: AtomicU64::new(0),
            unsynced: AtomicBool::new(false),
            deferred_error: Mutex::default(),
        }
    }

    pub(super) const fn kind(&self) -> FileType {
        self.kind
    }

    /// Its birth time, if known.
    pub(super) const fn birth_time(&self) -> Option<BirthTime> {
        self.birth_time
    }

    pub(super) const fn reads(&self) -> bool {
        self.flags & flag::ACCESS != flag::WRITE_ONLY
    }

    pub(super) const fn writes(&self) -> bool {
        self.flags & flag::ACCESS != 0
    }

    pub(super) const fn appends(&self) -> bool {
        self.flags & flag::APPEND != 0
    }

    /// The flags of open(2) that still matter.
    pub(super) const fn flags(&self) -> u32 {
        self.flags
    }

    /// The file as it is open in `backend`.
    ///
    /// # Errors
    ///
    /// ESTALE if it was open in another connection, and its name now leads to another file.
    pub(super) fn backend_file(&self, backend: &Backend) -> Result<Arc<BackendFile>> {
        let mut state = self.lock();
        if state.backend_file.is_of(backend) {
            if let Some(backend_file) =
                state
                    .backend_file
                    .reopen(backend, self.flags, &self.count)?
            {
                state.backend_file = Arc::new(backend_file);
            }
            return Ok(Arc::clone(&state.backend_file));
        }
        let found = match backend.resolver.find(state.path.path()?, Last::Follow) {
            Err(failure) if failure.is(Errno::NOENT) || failure.is(Errno::NOTDIR) => {
                return Err(Errno::STALE.into());
            }
            found => found?,
        };
        if (found.attr.ino, found.kind()) != (self.ino, self.kind) {
            return Err(Errno::STALE.into());
        }
        let birth_time = backend.birth_times.ask(&backend.session, found.id());
        let backend_file = Arc::new(BackendFile::open(backend, &found, self.flags, &self.count)?);
        // A new file may get the inode number of one that was just removed.
        if !BirthTime::may_be_same(self.birth_time, birth_time.wait()) {
            return Err(Errno::STALE.into());
        }
        state.backend_file = Arc::clone(&backend_file);
        Ok(backend_file)
    }

    /// Closes the file at the daemon until its next use. Syncs written data first, because a file
    /// that is opened again does not report earlier errors.
    pub(super) fn park(&self, backend: &Backend) -> Result<()> {
        let mut state = self.lock();
        if !state.backend_file.is_of(backend) || !state.backend_file.can_be_parked(backend)? {
            return Ok(());
        }
        let mut settled = state.backend_file.flush();
        if settled.is_ok() && self.unsynced.load(Ordering::Relaxed) {
            settled = state.backend_file.sync(true);
        }
        if let Err(failure) = settled {
            if !failure.is_daemon_lost() {
                self.defer_error(&failure);
            }
            return Err(failure);
        }
        self.unsynced.store(false, Ordering::Relaxed);
        state.backend_file = Arc::new(state.backend_file.parked(backend));
        Ok(())
    }

    /// Notes that data is about to be written.
    pub(super) fn wrote(&self) {
        self.unsynced.store(true, Ordering::Relaxed);
    }

    /// Keeps an error of the daemon for the client's next request.
    pub(super) fn defer_error(&self, failure: &Failure) {
        let errno = Errno::from_raw_os_error(failure.errno());
        self.deferred_error().get_or_insert(errno);
    }

    /// Reports failed writes, as close does, once.
    pub(super) fn flush(&self, backend: &Backend) -> Result<()> {
        let backend_file = Arc::clone(&self.lock().backend_file);
        let flushed = if backend_file.is_of(backend) {
            backend_file.flush()
        } else {
            Ok(())
        };
        flushed.and(self.take_deferred_error())
    }

    /// Syncs the file.
    pub(super) fn sync(&self, backend: &Backend, data_only: bool) -> Result<()> {
        let backend_file = self.backend_file(backend)?;
        // Before the sync, so that a write in the meantime counts.
        let unsynced = self.unsynced.swap(false, Ordering::Relaxed);
        if let Err(error) = backend_file.sync(data_only) {
            self.unsynced.fetch_or(unsynced, Ordering::Relaxed);
            return Err(error);
        }
        self.take_deferred_error()
    }

    fn take_deferred_error(&self) -> Result<()> {
        self.deferred_error()
            .take()
            .map_or(Ok(()), |errno| Err(errno.into()))
    }

    fn deferred_error(&self) -> MutexGuard<'_, Option<Errno>> {
        self.deferred_error.lock()
    }

    fn is_open(&self) -> bool {
        self.lock().backend_file.is_open()
    }

    fn is_parked(&self) -> bool {
        self.lock().backend_file.is_parked()
    }

    /// Updates the path after a rename.
    fn moved(&self, from: &Path, to: &Path) {
        self.lock().path.moved(from, to);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The open files of one client.
#[derive(Debug)]
pub(super) struct Handles {
    numbers: FdRange,
    /// Keyed by index.
    files: Vec<Option<Arc<OpenFile>>>,
    /// Unused indices below the length of `files`, lowest first.
    free: BinaryHeap<Reverse<usize>>,
    /// Counts uses.
    clock: u64,
}

impl Handles {
    /// No open files.
    pub(super) const fn new(numbers: FdRange) -> Self {
        Self {
            numbers,
            files: Vec::new(),
            free: BinaryHeap::new(),
            clock: 0,
        }
    }

    /// Gives a file the lowest free number.
    ///
    /// # Errors
    ///
    /// EMFILE if `limit` files are open.
    pub(super) fn insert(&mut self, file: OpenFile, limit: usize) -> Result<i32> {
        let (at, number) = self.free_number(limit)?;
        self.clock = self.clock.saturating_add(1);
        file.used.store(self.clock, Ordering::Relaxed);
        let file = Some(Arc::new(file));
        match self.files.get_mut(at) {
            Some(place) => {
                *place = file;
                self.free.pop();
            }
            None => self.files.push(file),
        }
        Ok(number)
    }

    /// The index and number of the next file.
    ///
    /// # Errors
    ///
    /// EMFILE if `limit` files are open.
    pub(super) fn free_number(&self, limit: usize) -> Result<(usize, i32)> {
        let at = self.free.peek().map_or(self.files.len(), |free| free.0);
        let number = self.numbers.number(at).filter(|_| at < limit);
        Ok((at, number.ok_or(Errno::MFILE)?))
    }

    /// The file with this number.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub(super) fn get(&mut self, number: i32) -> Result<Arc<OpenFile>> {
        self.clock = self.clock.saturating_add(1);
        let at = self.numbers.index(number);
        let file = at.and_then(|at| self.files.get(at));
        let file = file.cloned().flatten().ok_or(Errno::BADF)?;
        file.used.store(self.clock, Ordering::Relaxed);
        Ok(file)
    }

    /// Makes `new` stand for the file of `old`. Returns the file that `new` stood for.
    ///
    /// # Errors
    ///
    /// EBADF if one of the numbers is unused.
    pub(super) fn duplicate(&mut self, old: i32, new: i32) -> Result<Arc<OpenFile>> {
        let file = self.get(old)?;
        self.replace(new, Some(file))
    }

    /// Removes and returns the file with this number.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub(super) fn remove(&mut self, number: i32) -> Result<Arc<OpenFile>> {
        let file = self.replace(number, None)?;
        self.free.extend(self.numbers.index(number).map(Reverse));
        Ok(file)
    }

    fn replace(&mut self, number: i32, with: Option<Arc<OpenFile>>) -> Result<Arc<OpenFile>> {
        let place = self.numbers.index(number);
        let place = place.and_then(|at| self.files.get_mut(at));
        let place = place.filter(|place| place.is_some()).ok_or(Errno::BADF)?;
        let before = std::mem::replace(place, with);
        Ok(before.ok_or(Errno::BADF)?)
    }

    /// Number of open files.
    pub(super) fn count(&self) -> usize {
        self.files.len().saturating_sub(self.free.len())
    }

    /// `count` of the files that are open at the daemon: first those that parking need not sync,
    /// and of them the least recently used.
    pub(super) fn least_used(&self, count: usize) -> Vec<Arc<OpenFile>> {
        let open = self.files.iter().flatten().filter(|file| file.is_open());
        let mut open: Vec<_> = open.map(Arc::clone).collect();
        open.sort_unstable_by_key(|file| {
            let unsynced = file.unsynced.load(Ordering::Relaxed);
            (unsynced, file.used.load(Ordering::Relaxed))
        });
        open.truncate(count);
        open
    }

    /// The parked files of inode `ino`.
    pub(super) fn parked(&self, ino: u64) -> Vec<Arc<OpenFile>> {
        let files = self.files.iter().flatten();
        let parked = files.filter(|file| file.ino == ino && file.is_parked());
        parked.map(Arc::clone).collect()
    }

    /// Updates all paths after a rename.
    pub(super) fn moved(&self, from: &Path, to: &Path) {
        for file in self.files.iter().flatten() {
            file.moved(from, to);
        }
    }
}
