//! The threads that serve requests, as many as there are requests, up to a limit.
//!
//! Requests of one client run one after another, those of different clients in parallel. A client
//! waits for one answer at a time. If another request arrives from its endpoint, it is from a new
//! process, and only the latest waiting request counts.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gangplank_service::rate_limited;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::abi::Endpoint;

/// Time after which an idle thread ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// A pool of threads.
pub(super) struct Pool<J> {
    shared: Arc<Shared<J>>,
}

struct Shared<J> {
    most: usize,
    work: Box<dyn Fn(J) + Send + Sync>,
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    /// Jobs that can start, with their clients.
    ready: VecDeque<(Endpoint, J)>,
    /// Clients with a ready or running job, and the job behind it.
    queued: HashMap<Endpoint, Option<J>>,
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    running: usize,
    ending: bool,
}

impl<J: Send + 'static> Pool<J> {
    /// A pool of up to `most` threads that run `work`.
    pub(super) fn new(most: usize, work: impl Fn(J) + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                most: most.max(1),
                work: Box::new(work),
                state: Mutex::new(State {
                    ready: VecDeque::new(),
                    queued: HashMap::new(),
                    idle: 0,
                    threads: Vec::new(),
                    running: 0,
                    ending: false,
                }),
                changed: Condvar::new(),
            }),
        }
    }

    /// Queues `job` for `client` behind its running job. Replaces a job that waits behind it.
    pub(super) fn submit(&self, client: Endpoint, job: J) {
        let mut state = self.shared.lock();
        if state.ending {
            return;
        }
        if let Some(queued) = state.queued.get_mut(&client) {
            let given_up = queued.replace(job);
            drop(state);
            drop(given_up);
            return;
        }
        state.queued.insert(client, None);
        state.ready.push_back((client, job));
        if state.ready.len() > state.idle && state.running < self.shared.most {
            self.shared.start(&mut state);
        }
        drop(state);
        self.shared.changed.notify_one();
    }
}

impl<J> Pool<J> {
    /// Starts no more jobs and waits up to `limit` for the running ones. Returns whether all have
    /// ended.
    pub(super) fn finish(&self, limit: Duration) -> bool {
        let mut state = self.shared.lock();
        state.ending = true;
        let given_up = (
            std::mem::take(&mut state.ready),
            std::mem::take(&mut state.queued),
        );
        drop(state);
        drop(given_up);
        self.shared.changed.notify_all();
        let mut state = self.shared.lock();
        let changed = &self.shared.changed;
        changed.wait_while_for(&mut state, |state| state.running > 0, limit);
        state.running == 0
    }
}

impl<J> Drop for Pool<J> {
    /// Waits for the running jobs.
    fn drop(&mut self) {
        self.finish(Duration::ZERO);
        let threads = std::mem::take(&mut self.shared.lock().threads);
        for thread in threads {
            // The thread has ended, or panicked, which is logged.
            let _ = thread.join();
        }
    }
}

impl<J> Shared<J> {
    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock()
    }
}

impl<J: Send + 'static> Shared<J> {
    fn start(self: &Arc<Self>, state: &mut State<J>) {
        let shared = Arc::clone(self);
        let builder = thread::Builder::new().name("rhostfs_work".to_owned());
        match builder.spawn(move || shared.serve()) {
            Ok(thread) => {
                state.running = state.running.saturating_add(1);
                state.threads.retain(|thread| !thread.is_finished());
                state.threads.push(thread);
            }
            Err(error) if state.running > 0 => {
                rate_limited!(
                    warn,
                    "cannot start another thread, continuing with {}: {error}",
                    state.running
                );
            }
            // The next request starts a thread, which serves this one as well.
            Err(error) => rate_limited!(warn, "cannot start a thread for requests: {error}"),
        }
    }

    /// The loop of a thread.
    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some((client, job)) = state.ready.pop_front() {
                drop(state);
                (self.work)(job);
                state = self.lock();
                match state.queued.get_mut(&client).and_then(Option::take) {
                    Some(next) => state.ready.push_back((client, next)),
                    None => {
                        state.queued.remove(&client);
                    }
                }
                continue;
            }
            if state.ending {
                break;
            }
            state.idle = state.idle.saturating_add(1);
            let waited = self.changed.wait_for(&mut state, IDLE_TIMEOUT);
            state.idle = state.idle.saturating_sub(1);
            if waited.timed_out() && state.ready.is_empty() {
                break;
            }
        }
        state.running = state.running.saturating_sub(1);
        drop(state);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn requests_of_different_clients_run_in_parallel() {
        let (entered, inside) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let pool = Pool::new(3, move |job: i32| {
            entered.send(job).unwrap();
            gate.lock().recv().unwrap();
        });
        for client in 0..3 {
            pool.submit(Endpoint::from_raw(client), client);
        }
        let mut seen: Vec<i32> = (0..3)
            .map(|_| inside.recv_timeout(LIMIT).unwrap())
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
        for _ in 0..3 {
            open.send(()).unwrap();
        }
    }

    #[test]
    fn a_clients_requests_run_in_order_and_cancelled_ones_do_not() {
        let (entered, inside) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let pool = Pool::new(3, move |job: i32| {
            entered.send(job).unwrap();
            gate.lock().recv().unwrap();
        });
        let client = Endpoint::from_raw(10);
        pool.submit(client, 1);
        assert_eq!(inside.recv_timeout(LIMIT), Ok(1));
        pool.submit(client, 2);
        pool.submit(client, 3);
        assert!(inside.try_recv().is_err(), "the first is running");
        open.send(()).unwrap();
        assert_eq!(inside.recv_timeout(LIMIT), Ok(3));
        open.send(()).unwrap();
        drop(pool);
        assert!(inside.recv().is_err(), "nothing else ran");
    }

    #[test]
    fn queued_requests_do_not_start_after_the_end() {
        let (entered, inside) = mpsc::channel();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let pool = Pool::new(1, move |job: i32| {
            entered.send(job).unwrap();
            gate.lock().recv().unwrap();
        });
        for client in 0..3 {
            pool.submit(Endpoint::from_raw(client), client);
        }
        pool.submit(Endpoint::from_raw(0), 4);
        assert_eq!(inside.recv_timeout(LIMIT), Ok(0));
        assert!(!pool.finish(Duration::from_millis(1)), "one is running");
        open.send(()).unwrap();
        assert!(pool.finish(LIMIT));
        drop(pool);
        assert!(inside.recv().is_err(), "nothing else ran");
    }

    #[test]
    fn no_more_threads_run_than_allowed() {
        let (done, results) = mpsc::channel();
        let at_once = Mutex::new((0, 0));
        let pool = Pool::new(4, move |job: i32| {
            let mut counts = at_once.lock();
            counts.0 += 1;
            counts.1 = counts.0.max(counts.1);
            drop(counts);
            thread::yield_now();
            let mut counts = at_once.lock();
            counts.0 -= 1;
            done.send((job, counts.1)).unwrap();
        });
        for client in 0..100 {
            pool.submit(Endpoint::from_raw(client), client);
        }
        let most = (0..100)
            .map(|_| results.recv_timeout(LIMIT).unwrap().1)
            .max();
        assert!(most <= Some(4), "{most:?}");
    }
}
