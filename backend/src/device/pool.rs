//! Threads that serve the requests of a device's rings side by side: all of them (`--thread-pool-size`), or those that would
//! keep others waiting.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use super::request::{Handler, Request};
use super::worker::handle;
use crate::rate_limited;

/// Threads for what would keep others waiting. It is a disk that they wait for: their number is that of requests it gets at a
/// time, not of processors.
const HELPERS: usize = 16;

/// A fixed number of threads on one queue of requests. The queue holds no more than the rings do.
pub(super) struct Pool {
    queue: Option<mpsc::Sender<Box<Request>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `size` threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(super) fn new(size: usize, handler: &Arc<dyn Handler>) -> io::Result<Self> {
        let (queue, requests) = mpsc::channel::<Box<Request>>();
        let requests = Arc::new(Mutex::new(requests));
        let threads = (0..size)
            .map(|index| {
                let (requests, handler) = (Arc::clone(&requests), Arc::clone(handler));
                thread::Builder::new()
                    .name(format!("pool_{index}"))
                    .spawn(move || serve(&requests, &*handler))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            queue: Some(queue),
            threads,
        })
    }

    /// Has a thread serve `request` and give it back.
    pub(super) fn submit(&self, request: Box<Request>) {
        if let Some(queue) = &self.queue {
            // Should every thread be gone, then the request comes back in the error and is given back empty.
            let _ = queue.send(request);
        }
    }
}

impl Drop for Pool {
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
pub(super) struct Helpers {
    handler: Arc<dyn Handler>,
    pool: OnceLock<Option<Pool>>,
}

impl Helpers {
    pub(super) fn new(handler: Arc<dyn Handler>) -> Self {
        Self {
            handler,
            pool: OnceLock::new(),
        }
    }

    /// The threads, if any can be had.
    pub(super) fn pool(&self) -> Option<&Pool> {
        let started = self.pool.get_or_init(|| {
            Pool::new(HELPERS, &self.handler)
                .inspect_err(|error| {
                    rate_limited!(
                        warn,
                        "cannot start threads to read on, so requests wait for each other: {error}"
                    );
                })
                .ok()
        });
        started.as_ref()
    }
}

fn serve(requests: &Mutex<mpsc::Receiver<Box<Request>>>, handler: &dyn Handler) {
    loop {
        let next = requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(request) = next else { return };
        let Some(ring) = request.origin.as_ref().map(|origin| origin.ring.clone()) else {
            continue;
        };
        if let Some(served) = handle(handler, &ring, request) {
            served.finish();
        }
    }
}
