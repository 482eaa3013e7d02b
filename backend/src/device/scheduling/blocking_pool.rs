//! A thread pool for requests that would block, started with the first of them.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use gangplank_service::rate_limited;

use super::thread_pool::ThreadPool;
use crate::device::request::{Handler, Request};

/// Threads of the pool. They wait for disks, so this is the number of requests that a disk gets at
/// a time, whatever the number of CPUs.
const THREADS: usize = 16;

/// A pool that most guests never start: they seldom read uncached data while other requests wait.
pub(super) struct BlockingPool {
    handler: Arc<dyn Handler>,
    stopping: Arc<AtomicBool>,
    /// `Some(None)`: no thread could be started.
    pool: OnceLock<Option<ThreadPool>>,
}

impl BlockingPool {
    /// A pool without threads yet. Once `stopping` is set, it discards queued requests.
    pub(super) fn new(handler: Arc<dyn Handler>, stopping: Arc<AtomicBool>) -> Self {
        Self {
            handler,
            stopping,
            pool: OnceLock::new(),
        }
    }

    /// Queues `request` for a thread, which runs it and returns its chain. Returns the request if
    /// the queue is full or no thread can be started.
    pub(super) fn try_submit(&self, request: Box<Request>) -> Result<(), Box<Request>> {
        let started = self.pool.get_or_init(|| {
            ThreadPool::new(THREADS, &self.handler, &self.stopping)
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
