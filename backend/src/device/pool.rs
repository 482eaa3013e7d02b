//! Threads that serve the requests of a device's rings side by side (`--thread-pool-size`).

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use super::request::{Handler, Request};
use super::worker::handle;

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
