//! Requests that wait for a lock, each on a thread of its own, until INTERRUPT ends the wait.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gangplank_fuse::{LkIn, NodeId, Unique};

use super::file_system::{FileSystem, LockWait};
use crate::sys::interrupt::Interruption;

/// Most requests of one guest that wait for a lock at a time. Each occupies a thread.
const MAX_LOCK_WAITS: usize = 256;

/// A request that waits for a lock.
#[derive(Debug)]
pub struct LockRequest {
    pub(super) unique: Unique,
    pub(super) node: NodeId,
    pub(super) args: LkIn,
}

/// The requests of one session that wait for a lock.
#[derive(Default)]
pub(super) struct LockWaits(Mutex<State>);

#[derive(Default)]
struct State {
    /// The connection ends: no request may begin to wait.
    closed: bool,
    requests: HashMap<Unique, Arc<Interruption>>,
}

impl LockWaits {
    /// Registers a request that is about to wait, so that INTERRUPT finds it.
    ///
    /// # Errors
    /// The errno for its reply. EINTR: the connection ends. ENOLCK: [`MAX_LOCK_WAITS`] requests
    /// wait already. EINVAL: a request with the same number waits already.
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

    /// The handle that ends the request's wait.
    pub(super) fn interruption(&self, unique: Unique) -> Option<Arc<Interruption>> {
        self.lock().requests.get(&unique).cloned()
    }

    /// Waits for the lock on the calling thread.
    ///
    /// # Errors
    /// EINTR if interrupted; otherwise the file system's error.
    pub(super) fn wait(&self, lock: &LockRequest, file_system: &impl FileSystem) -> io::Result<()> {
        let interruption = self
            .interruption(lock.unique)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINTR))?;
        let result = file_system.setlk(lock.node, &lock.args, LockWait::UntilFree(&interruption));
        self.unregister(lock.unique);
        result
    }

    /// Removes a request that no longer waits.
    pub(super) fn unregister(&self, unique: Unique) {
        self.lock().requests.remove(&unique);
    }

    /// Ends the wait of a request. Returns false if the request does not wait, or not yet.
    pub(super) fn interrupt(&self, unique: Unique) -> bool {
        // `interrupt` waits for the thread, and the thread locks the map to unregister itself, so
        // this must not hold the lock.
        let found = self.interruption(unique);
        found
            .inspect(|interruption| interruption.interrupt())
            .is_some()
    }

    /// Ends all waits and refuses new ones.
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
        // No thread leaves the map half changed when it panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
