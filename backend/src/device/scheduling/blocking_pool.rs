//! A thread pool for requests that would block, started with the first of them.
//!
//! READ asks the kernel for cached data only (`RWF_NOWAIT`, where the file system supports it), and
//! runs here if there is none. FSYNC and the like always wait. If the queue is full, the ring's
//! thread runs the next request itself.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use gangplank_service::rate_limited;

use super::thread_pool::ThreadPool;
use crate::device::request::{Handler, Request};

/// A pool that most guests never start: they rarely read uncached data while other requests wait.
pub(super) struct BlockingPool {
    threads: usize,
    handler: Arc<dyn Handler>,
    stopping: Arc<AtomicBool>,
    /// `Some(None)`: no thread could be started.
    pool: OnceLock<Option<ThreadPool>>,
}

impl BlockingPool {
    /// A pool that will have `threads` threads. Once `stopping` is set, it discards queued
    /// requests.
    pub(super) fn new(
        threads: usize,
        handler: Arc<dyn Handler>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self {
            threads,
            handler,
            stopping,
            pool: OnceLock::new(),
        }
    }

    /// Queues `request` for a thread, which runs it and returns its chain. Returns the request if
    /// the queue is full or no thread can be started.
    pub(super) fn try_submit(&self, request: Box<Request>) -> Result<(), Box<Request>> {
        let started = self.pool.get_or_init(|| {
            ThreadPool::new(self.threads, &self.handler, &self.stopping)
                .inspect_err(|error| {
                    rate_limited!(
                        warn,
                        "cannot start the threads for blocking requests, so a guest's requests \
                         wait for each other: {error}"
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
