//! Requests that wait for a lock, until INTERRUPT or the end of the session ends the wait.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gangplank_fuse::{LkIn, NodeId, Unique};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::file_system::{FileSystem, LockWait};
use super::is_would_block;
use crate::sys::interrupt::Interruption;

/// A request that waits for a lock.
#[derive(Debug)]
pub struct LockRequest {
    pub(super) unique: Unique,
    pub(super) node: NodeId,
    pub(super) args: LkIn,
}

/// The requests of one session that wait for a lock. Their number is limited by the sizes of the
/// guest's rings.
#[derive(Default)]
pub(super) struct LockWaits {
    state: Mutex<State>,
    /// Signalled when requests are interrupted.
    interrupted: Condvar,
}

#[derive(Default)]
struct State {
    /// The connection ends: no request may begin to wait.
    closed: bool,
    requests: HashMap<Unique, Arc<Interruption>>,
    /// Whether a request was interrupted since [`LockWaits::wait_for_interrupt`] returned.
    has_interrupts: bool,
}

impl LockWaits {
    /// Registers a request that is about to wait, so that INTERRUPT finds it.
    ///
    /// # Errors
    /// The errno for its reply. EINTR: the connection ends. EINVAL: a request with the same number
    /// waits already.
    pub(super) fn register(&self, unique: Unique) -> Result<(), i32> {
        let mut state = self.lock();
        if state.closed {
            return Err(libc::EINTR);
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
        let interruption = self.interruption(lock.unique).ok_or_else(interrupted)?;
        let result = file_system.setlk(lock.node, &lock.args, LockWait::UntilFree(&interruption));
        self.unregister(lock.unique);
        result
    }

    /// Takes the lock if it is free. If not, the request waits on.
    ///
    /// # Errors
    /// EAGAIN if the request waits on; EINTR if interrupted; otherwise the file system's error.
    pub(super) fn retry(
        &self,
        lock: &LockRequest,
        file_system: &impl FileSystem,
    ) -> io::Result<()> {
        let interruption = self.interruption(lock.unique).ok_or_else(interrupted)?;
        // Whoever interrupts the request waits until it is out of the file system.
        let result = interruption.run(|| file_system.setlk(lock.node, &lock.args, LockWait::No));
        if !is_would_block(&result) {
            self.unregister(lock.unique);
        }
        result
    }

    /// Waits for `limit`, or until a request is interrupted.
    pub(super) fn wait_for_interrupt(&self, limit: Duration) {
        let mut state = self.lock();
        let is_quiet = |state: &mut State| !state.has_interrupts;
        self.interrupted.wait_while_for(&mut state, is_quiet, limit);
        state.has_interrupts = false;
    }

    /// Removes a request that no longer waits.
    pub(super) fn unregister(&self, unique: Unique) {
        self.lock().requests.remove(&unique);
    }

    /// Ends the wait of a request. Returns false if the request does not wait, or not yet.
    pub(super) fn interrupt(&self, unique: Unique) -> bool {
        // `interrupt` waits for the thread, and the thread locks the map to unregister itself, so
        // this must not hold the lock.
        let Some(interruption) = self.interruption(unique) else {
            return false;
        };
        interruption.interrupt();
        self.announce_interrupts();
        true
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
        self.announce_interrupts();
    }

    fn announce_interrupts(&self) {
        self.lock().has_interrupts = true;
        self.interrupted.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No thread leaves the map half changed when it panics.
        self.state.lock()
    }
}

fn interrupted() -> io::Error {
    io::Error::from_raw_os_error(libc::EINTR)
}
