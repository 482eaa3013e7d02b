//! A deadline for calls that know none.
//!
//! The vhost crate waits for an answer as long as the connection lasts, and takes a socket's receive timeout for an invitation to
//! try again. So a thread beside each connection shuts the socket down when an answer is late; the wait then ends at once.
//! A connection whose answer is late is of no more use anyhow: nobody could tell that answer from the next.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What the thread and its owner tell each other.
#[derive(Debug, Default)]
struct State {
    /// When the call in hand has to be over.
    deadline: Option<Instant>,
    /// The socket was shut down.
    fired: bool,
    /// The owner is gone.
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shuts a socket down when a call on it takes too long.
#[derive(Debug)]
pub(super) struct Watchdog {
    shared: Arc<Shared>,
}

impl Watchdog {
    /// Begins to watch calls on `socket`.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(socket: UnixStream) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        thread::Builder::new()
            .name("vhost_deadline".to_owned())
            .spawn(move || watch(&watched, &socket))?;
        Ok(Self { shared })
    }

    /// Makes a call, which may take `limit`. Its result, and whether the socket had to be shut down by now.
    pub(super) fn guard<R>(&self, limit: Duration, call: impl FnOnce() -> R) -> (R, bool) {
        self.shared.lock().deadline = Instant::now().checked_add(limit);
        self.shared.changed.notify_one();
        let result = call();
        let mut state = self.shared.lock();
        state.deadline = None;
        (result, state.fired)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

fn watch(shared: &Shared, socket: &UnixStream) {
    let mut state = shared.lock();
    while !state.closed {
        let now = Instant::now();
        state = match state.deadline {
            None => shared
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(deadline) if deadline <= now => {
                state.fired = true;
                state.deadline = None;
                // It fails only where the daemon was faster and the call is over anyhow.
                let _ = socket.shutdown(Shutdown::Both);
                state
            }
            Some(deadline) => {
                shared
                    .changed
                    .wait_timeout(state, deadline.duration_since(now))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_late_answer_ends_the_wait_and_the_connection() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::start(ours.try_clone().unwrap()).unwrap();
        let (read, fired) = watchdog.guard(Duration::from_millis(30), || ours.read(&mut [0; 8]));
        assert_eq!(read.unwrap(), 0);
        assert!(fired);
        drop(theirs);
    }

    #[test]
    fn an_answer_in_time_leaves_the_connection_alone() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::start(ours.try_clone().unwrap()).unwrap();
        for _ in 0..50 {
            theirs.write_all(b"answer").unwrap();
            let (read, fired) = watchdog.guard(Duration::from_secs(60), || ours.read(&mut [0; 8]));
            assert_eq!((read.unwrap(), fired), (6, false));
        }
    }
}
