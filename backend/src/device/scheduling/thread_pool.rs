//! Threads that run requests from one queue: a fixed number, or more as requests need them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use gangplank_service::rate_limited;
use parking_lot::Mutex;

use super::run::run_to_end;
use crate::device::request::{Handler, Request};

/// Most requests in the queue. Each keeps its buffers, and a ring that stops waits for all of them.
const MAX_QUEUED: usize = 64;

/// The threads and their queue.
pub(super) struct ThreadPool {
    /// `None` only in `drop`.
    queue: Option<SyncSender<Box<Request>>>,
    shared: Arc<Shared>,
    /// Most threads.
    most: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
    started: AtomicUsize,
}

/// What the threads share.
struct Shared {
    requests: Mutex<Receiver<Box<Request>>>,
    handler: Arc<dyn Handler>,
    stopping: Arc<AtomicBool>,
    /// Requests that are queued or run.
    present: AtomicUsize,
}

impl ThreadPool {
    /// Starts `size` threads, or fewer if the process cannot have as many.
    ///
    /// Once `stopping` is set, the threads discard queued requests instead of running them.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn new(
        size: usize,
        handler: &Arc<dyn Handler>,
        stopping: &Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let pool = Self::growing(size, handler, stopping)?;
        for index in 1..size {
            if let Err(error) = pool.start_thread() {
                rate_limited!(
                    warn,
                    "a pool has {index} threads instead of {size}: cannot start more: {error}"
                );
                break;
            }
        }
        Ok(pool)
    }

    /// Starts one thread, and another whenever a request comes and all are at work, up to `most`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn growing(
        most: usize,
        handler: &Arc<dyn Handler>,
        stopping: &Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let (queue, requests) = sync_channel::<Box<Request>>(MAX_QUEUED);
        let pool = Self {
            queue: Some(queue),
            shared: Arc::new(Shared {
                requests: Mutex::new(requests),
                handler: Arc::clone(handler),
                stopping: Arc::clone(stopping),
                present: AtomicUsize::new(0),
            }),
            most,
            threads: Mutex::default(),
            started: AtomicUsize::new(0),
        };
        pool.start_thread()?;
        Ok(pool)
    }

    fn start_thread(&self) -> io::Result<()> {
        let mut threads = self.threads.lock();
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(format!("pool_{}", threads.len()))
            .spawn(move || run_queued(&shared))?;
        threads.push(thread);
        self.started.store(threads.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Counts one more request, and starts a thread for it if all others are at work.
    fn count(&self) {
        let present = self.shared.present.fetch_add(1, Ordering::Relaxed) + 1;
        let started = self.started.load(Ordering::Relaxed);
        if present > started
            && started < self.most
            && let Err(error) = self.start_thread()
        {
            rate_limited!(
                warn,
                "a pool has {started} threads and cannot have more: {error}"
            );
        }
    }

    /// Queues `request` for a thread, which runs it and returns its chain. Waits while the queue is
    /// full.
    pub(super) fn submit(&self, request: Box<Request>) {
        if let Some(queue) = &self.queue {
            self.count();
            // Fails if all threads have died. The error then drops the request, which stops its
            // ring.
            let _ = queue.send(request);
        }
    }

    /// Like [`Self::submit`], but returns the request if the queue is full.
    pub(super) fn try_submit(&self, request: Box<Request>) -> Result<(), Box<Request>> {
        let Some(queue) = &self.queue else {
            return Err(request);
        };
        self.count();
        queue.try_send(request).map_err(|error| {
            self.shared.present.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(request) | TrySendError::Disconnected(request) => request,
            }
        })
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.get_mut().drain(..) {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Runs queued requests until the queue closes.
fn run_queued(shared: &Shared) {
    loop {
        let next = shared.requests.lock().recv();
        let Ok(request) = next else { return };
        if shared.stopping.load(Ordering::Relaxed) {
            request.discard();
        } else {
            run_to_end(&*shared.handler, request);
        }
        shared.present.fetch_sub(1, Ordering::Relaxed);
    }
}
