//! The threads that wait for locks, and the requests that wait without a thread.
//!
//! A thread in fcntl(2) gets its lock as soon as it is free, but a guest may have thousands of
//! requests that wait, and locks cannot be polled. So the number of threads is limited, and further
//! requests queue. A thread takes the next request from the queue when its own has the lock.
//!
//! The queue alone would not do: the owner of a lock that all threads wait for may itself wait in
//! the queue, for another lock. So one more thread tries the locks of the queue from time to time.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::Session;
use super::file_system::FileSystem;
use super::lock_waits::LockRequest;
use crate::device::request::{Request, Scratch};
use crate::trace::Tracer;

/// Shortest pause between two rounds in which the locks of the queue are tried.
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// Longest pause. It doubles with each round in which no lock was free. 1,000 requests in the queue
/// then cost 2 to 3 % of a CPU.
const MAX_RETRY_INTERVAL: Duration = Duration::from_millis(64);

/// A request and the lock that it waits for.
pub(super) struct Waiting {
    pub(super) request: Box<Request>,
    pub(super) lock: LockRequest,
}

/// The threads and the queue of one session.
pub(super) struct LockThreads<F>(Arc<Shared<F>>);

struct Shared<F> {
    session: Arc<Session<F>>,
    max_threads: usize,
    tracer: Option<Arc<Tracer>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Waiting>,
    /// Threads that wait for a lock.
    threads: usize,
    /// Whether a thread tries the locks of the queue.
    is_retrying: bool,
}

impl<F: FileSystem + 'static> LockThreads<F> {
    /// At most `max_threads` threads wait for locks, and one tries those of the queue. None runs
    /// while no request waits.
    pub(super) fn new(
        session: Arc<Session<F>>,
        max_threads: usize,
        tracer: Option<Arc<Tracer>>,
    ) -> Self {
        Self(Arc::new(Shared {
            session,
            max_threads,
            tracer,
            state: Mutex::default(),
        }))
    }

    /// Has a thread wait for the lock and return the request's chain, now or later.
    ///
    /// # Errors
    /// No thread can be started that waits for this lock: returns the request and why.
    pub(super) fn submit(&self, waiting: Waiting) -> Result<(), (Waiting, io::Error)> {
        let mut state = self.0.lock();
        state.queue.push_back(waiting);
        if state.threads < self.0.max_threads
            && self.start("lock_wait", Shared::wait_for_locks).is_ok()
        {
            state.threads += 1;
            return Ok(());
        }
        // The other threads may wait for this request's guest, so the queue must be tried as well.
        if state.is_retrying {
            return Ok(());
        }
        let Err(error) = self.start("lock_retry", Shared::retry_locks) else {
            state.is_retrying = true;
            return Ok(());
        };
        match state.queue.pop_back() {
            Some(waiting) => Err((waiting, error)),
            None => Ok(()),
        }
    }

    fn start(&self, name: &str, run: fn(&Shared<F>)) -> io::Result<()> {
        let shared = Arc::clone(&self.0);
        thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&shared))
            .map(drop)
    }
}

impl<F: FileSystem> Shared<F> {
    /// Waits for the locks of queued requests, one after another, until the queue is empty.
    fn wait_for_locks(&self) {
        loop {
            let mut state = self.lock();
            let Some(mut waiting) = state.queue.pop_front() else {
                state.threads -= 1;
                return;
            };
            drop(state);
            // A request that is lost in a panic stops its ring; the thread goes on.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                let (_, mut reply, scratch) = waiting.request.parts();
                self.begin_trace(scratch);
                let written = self.session.wait_for_lock(&waiting.lock, &mut reply);
                self.finish(waiting.request, written);
            }));
        }
    }

    /// Tries the locks of queued requests until the queue is empty.
    fn retry_locks(&self) {
        let mut interval = MIN_RETRY_INTERVAL;
        loop {
            self.session.lock_waits.wait_for_interrupt(interval);
            let mut state = self.lock();
            let count = state.queue.len();
            if count == 0 {
                state.is_retrying = false;
                return;
            }
            drop(state);
            let mut has_finished = false;
            for _ in 0..count {
                let Some(waiting) = self.lock().queue.pop_front() else {
                    break;
                };
                has_finished |=
                    catch_unwind(AssertUnwindSafe(|| self.retry(waiting))).unwrap_or(true);
            }
            interval = if has_finished {
                MIN_RETRY_INTERVAL
            } else {
                MAX_RETRY_INTERVAL.min(2 * interval)
            };
        }
    }

    /// Tries a request's lock once, and queues the request again if the lock is not free. Returns
    /// whether the request is finished.
    fn retry(&self, mut waiting: Waiting) -> bool {
        let (_, mut reply, scratch) = waiting.request.parts();
        self.begin_trace(scratch);
        let Some(written) = self.session.retry_lock(&waiting.lock, &mut reply) else {
            if let Some(tracer) = &self.tracer {
                waiting.request.leave_trace(tracer);
            }
            self.lock().queue.push_back(waiting);
            return false;
        };
        self.finish(waiting.request, written);
        true
    }

    fn begin_trace(&self, scratch: &mut Scratch) {
        if let Some(tracer) = &self.tracer {
            tracer.begin(&mut scratch.trace);
        }
    }

    fn finish(&self, mut request: Box<Request>, written: usize) {
        if let Some(tracer) = &self.tracer {
            request.end_trace(tracer, written);
        }
        request.set_reply_len(written);
        request.finish();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No thread leaves the fields inconsistent when it panics.
        self.state.lock()
    }
}
