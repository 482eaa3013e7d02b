//! Requests that wait for a lock, each on a thread of its own, and INTERRUPT that ends the wait.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gangplank_fuse::Unique;

use super::{FileSystem, LockRequest, LockWait};
use crate::sys::interrupt::Interruption;

/// How many requests of one guest may wait at a time: each costs a thread.
const MAX_LOCK_WAITS: usize = 256;

/// The requests of one session that wait.
#[derive(Default)]
pub(super) struct LockWaits(Mutex<State>);

#[derive(Default)]
struct State {
    /// Nothing may begin to wait any more.
    closed: bool,
    requests: HashMap<Unique, Arc<Interruption>>,
}

impl LockWaits {
    /// Notes that the request is about to wait, so that INTERRUPT finds it.
    ///
    /// # Errors
    /// The errno to refuse it with: the session ends, too many wait already, or one of that number does.
    pub(super) fn register(&self, unique: Unique) -> Result<(), i32> {
        let mut state = self.lock();
        if state.closed {
            return Err(libc::EINTR);
        }
        if state.requests.len() >= MAX_LOCK_WAITS {
            return Err(libc::ENOLCK);
        }
        match state.requests.entry(unique) {
            Entry::Occupied(_) => Err(libc::EINVAL),
            Entry::Vacant(entry) => {
                entry.insert(Arc::new(Interruption::new()));
                Ok(())
            }
        }
    }

    /// The handle by which the request's wait is ended.
    pub(super) fn interruption(&self, unique: Unique) -> Option<Arc<Interruption>> {
        self.lock().requests.get(&unique).cloned()
    }

    /// Waits for the lock on the calling thread.
    ///
    /// # Errors
    /// EINTR when interrupted; else the file system's.
    pub(super) fn wait(&self, lock: &LockRequest, file_system: &impl FileSystem) -> io::Result<()> {
        let interruption = self
            .interruption(lock.unique)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINTR))?;
        let result = file_system.setlk(lock.node, &lock.args, LockWait::UntilFree(&interruption));
        self.unregister(lock.unique);
        result
    }

    /// Notes that the request waits no longer.
    pub(super) fn unregister(&self, unique: Unique) {
        self.lock().requests.remove(&unique);
    }

    /// Ends the wait of a request; false if it does not wait, or not yet.
    pub(super) fn interrupt(&self, unique: Unique) -> bool {
        // Interrupting waits for the thread, which needs the map to take itself off it.
        let found = self.interruption(unique);
        found
            .inspect(|interruption| interruption.interrupt())
            .is_some()
    }

    /// Ends all waits, and lets none begin.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.interrupt_all();
    }

    /// Ends all waits.
    pub(super) fn interrupt_all(&self) {
        let all: Vec<_> = self.lock().requests.values().cloned().collect();
        all.iter().for_each(|interruption| interruption.interrupt());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Insertions and removals are whole whenever the lock is free.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
