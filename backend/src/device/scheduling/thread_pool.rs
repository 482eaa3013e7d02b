//! A fixed number of threads that run requests from one queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    threads: Vec<JoinHandle<()>>,
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
        let (queue, requests) = sync_channel::<Box<Request>>(MAX_QUEUED);
        let requests = Arc::new(Mutex::new(requests));
        let mut threads = Vec::with_capacity(size);
        for index in 0..size {
            let requests = Arc::clone(&requests);
            let (handler, stopping) = (Arc::clone(handler), Arc::clone(stopping));
            let started = thread::Builder::new()
                .name(format!("pool_{index}"))
                .spawn(move || run_queued(&requests, &*handler, &stopping));
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(error),
                Err(error) => {
                    rate_limited!(
                        warn,
                        "a pool has {index} threads instead of {size}: cannot start more: {error}"
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

    /// Queues `request` for a thread, which runs it and returns its chain. Waits while the queue is
    /// full.
    pub(super) fn submit(&self, request: Box<Request>) {
        if let Some(queue) = &self.queue {
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
        queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(request) | TrySendError::Disconnected(request) => request,
        })
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Runs queued requests until the queue closes.
fn run_queued(
    requests: &Mutex<Receiver<Box<Request>>>,
    handler: &dyn Handler,
    stopping: &AtomicBool,
) {
    loop {
        let next = requests.lock().recv();
        let Ok(request) = next else { return };
        if stopping.load(Ordering::Relaxed) {
            request.discard();
        } else {
            run_to_end(handler, request);
        }
    }
}
