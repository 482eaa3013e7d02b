//! Threads that serve the requests of a device's rings side by side: all of them (`--thread-pool-size`), or those that would
//! keep others waiting.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use super::request::{Handled, Handler, IoMode, Request};
use super::worker::handle;
use crate::rate_limited;

/// Requests that may wait for a thread. Each keeps its buffers meanwhile, and a ring that stops waits for all of them.
const MAX_QUEUED: usize = 64;

/// Threads for what would keep others waiting. It is a disk that they wait for: their number is that of requests it gets at a
/// time, not of processors.
const BLOCKING_THREADS: usize = 16;

/// A fixed number of threads on one queue of requests.
pub(super) struct ThreadPool {
    queue: Option<SyncSender<Box<Request>>>,
    threads: Vec<JoinHandle<()>>,
}

impl ThreadPool {
    /// Starts `size` threads, or as many as can be had.
    ///
    /// # Errors
    /// None can be started.
    pub(super) fn new(size: usize, handler: &Arc<dyn Handler>) -> io::Result<Self> {
        Self::with_stop_flag(size, handler, &Arc::default())
    }

    /// The same, whose threads count off what waits once `stopping` is set, without serving it.
    fn with_stop_flag(
        size: usize,
        handler: &Arc<dyn Handler>,
        stopping: &Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let (queue, requests) = sync_channel::<Box<Request>>(MAX_QUEUED);
        let requests = Arc::new(Mutex::new(requests));
        let mut threads = Vec::with_capacity(size);
        for index in 0..size {
            let requests = Arc::clone(&requests);
            let (handler, stopping) = (Arc::clone(handler), Arc::clone(stopping));
            let started = thread::Builder::new()
                .name(format!("pool_{index}"))
                .spawn(move || serve(&requests, &*handler, &stopping));
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(error),
                Err(error) => {
                    rate_limited!(
                        warn,
                        "{index} of {size} threads of a pool were started: {error}"
                    );
                    break;
                }
            }
        }
        Ok(Self {
            queue: Some(queue),
            threads,
        })
    }

    /// Has a thread serve `request` and give it back; waits until it may wait.
    pub(super) fn submit(&self, request: Box<Request>) {
        if let Some(queue) = &self.queue {
            // Should every thread be gone, then the request comes back in the error and is counted off.
            let _ = queue.send(request);
        }
    }

    /// The same, unless too many wait already: then it is given back.
    fn try_submit(&self, request: Box<Request>) -> Result<(), Box<Request>> {
        let Some(queue) = &self.queue else {
            return Err(request);
        };
        queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) | TrySendError::Disconnected(request) => request,
        })
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // A thread's panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// A pool that there is once it is needed: most guests never ask for anything that is not in the page cache while they also
/// ask for something else.
pub(super) struct BlockingPool {
    handler: Arc<dyn Handler>,
    stopping: Arc<AtomicBool>,
    pool: OnceLock<Option<ThreadPool>>,
}

impl BlockingPool {
    /// No threads yet; when `stopping` is set, what waits for them is left undone.
    pub(super) fn new(handler: Arc<dyn Handler>, stopping: Arc<AtomicBool>) -> Self {
        Self {
            handler,
            stopping,
            pool: OnceLock::new(),
        }
    }

    /// Has a helper serve `request` and give it back, unless there is none, or too many wait already.
    pub(super) fn try_submit(&self, request: Box<Request>) -> Result<(), Box<Request>> {
        let started = self.pool.get_or_init(|| {
            ThreadPool::with_stop_flag(BLOCKING_THREADS, &self.handler, &self.stopping)
                .inspect_err(|error| {
                    rate_limited!(
                        warn,
                        "cannot start threads to read on, so requests wait for each other: {error}"
                    );
                })
                .ok()
        });
        match started {
            Some(pool) => pool.try_submit(request),
            None => Err(request),
        }
    }
}

fn serve(requests: &Mutex<Receiver<Box<Request>>>, handler: &dyn Handler, stopping: &AtomicBool) {
    loop {
        let next = requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(mut request) = next else { return };
        if stopping.load(Ordering::Relaxed) {
            if let Some(origin) = request.take_origin() {
                origin.ring.discard(1);
            }
            continue;
        }
        let Some(ring) = request.origin.as_ref().map(|origin| origin.ring.clone()) else {
            continue;
        };
        if let Handled::Replied(served) = handle(handler, &ring, request, IoMode::Blocking) {
            served.finish();
        }
    }
}
