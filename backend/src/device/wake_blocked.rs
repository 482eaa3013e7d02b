//! Wakes the threads of a device that wait for its frontend, while the device ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::vring::Vring;

/// Interval between two signals to a thread. The first usually wakes it.
const WAKE_INTERVAL: Duration = Duration::from_millis(2);

/// A thread that wakes those which wait for room in a call or error descriptor, until this value is
/// dropped.
pub(super) struct WakeBlocked {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WakeBlocked {
    /// From now on, drops notifications of `rings` that would wait, and wakes the threads that
    /// wait.
    ///
    /// # Errors
    /// The thread cannot be started. Threads that wait already then go on waiting.
    pub(super) fn start(rings: Vec<Vring>) -> io::Result<Self> {
        rings.iter().for_each(Vring::end_notifications);
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let thread = thread::Builder::new()
            .name("wake_blocked".into())
            .spawn(move || {
                while !is_done.load(Ordering::Relaxed) {
                    rings.iter().for_each(Vring::wake_blocked);
                    thread::park_timeout(WAKE_INTERVAL);
                }
            })?;
        Ok(Self {
            done,
            thread: Some(thread),
        })
    }
}

impl Drop for WakeBlocked {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread does not panic.
            let _ = thread.join();
        }
    }
}
