//! Decides where and when the requests of a ring run.
//!
//! | ring | strategy | requests run |
//! | --- | --- | --- |
//! | high-priority | [`Strategy::BatchForgets`] | on the ring's thread, in batches |
//! | request | [`Strategy::Inline`] | on the ring's thread |
//! | request, with `--thread-pool-size` | [`Strategy::Pooled`] | on the device's [`thread_pool`] |
//!
//! With [`Strategy::Inline`], the thread polls for the next request ([`BusyPoll`]) and coalesces
//! notifications ([`interrupt_coalescing`]). A request that would make others of its ring wait for
//! a disk runs on the [`blocking_pool`].
//!
//! The high-priority ring carries FORGET and INTERRUPT, which thereby never wait behind a slow
//! request.
//!
//! Where the files have a server, the pool is the default, and grows as requests need it: those
//! that the server does not answer hold a thread each, and the others go on.
//!
//! A [`DeviceScheduler`] owns the pools that the rings of a device share. Each ring's worker owns a
//! [`RingScheduler`].

mod blocking_pool;
mod interrupt_coalescing;
mod run;
mod thread_pool;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use gangplank_service::busy_poll::BusyPoll;

use self::blocking_pool::BlockingPool;
use self::interrupt_coalescing::{InterruptCoalescing, NotifyMode};
use self::run::{recover, run, run_to_end};
use self::thread_pool::ThreadPool;
use super::options::Options;
use super::request::{Cost, Handled, Handler, IoMode, Request};
use super::vring::Vring;
use crate::state::requests::Interrupted;
use crate::sys::thread::preemptions;

/// Index of the high-priority ring (virtio 1.2, 5.11.2).
const HIGH_PRIORITY: usize = 0;

/// A reply of at least this many bytes is returned at once, not with the rest of its batch: the
/// driver can copy it while the worker serves the next request.
const LARGE_REPLY: u32 = 64 * 1024;

/// Longest time for which a batch withholds a reply, apart from the request being served. Requests
/// of a batch may take long, because files may lie on slow disks.
const MAX_REPLY_DELAY: Duration = Duration::from_micros(500);

/// Replies between two looks at the clock.
const CLOCK_INTERVAL: usize = 4;

/// How long the high-priority ring's worker sleeps after a FORGET to batch the following ones.
///
/// The guest's kernel sends thousands of FORGETs one by one and waits for none. A wake-up for each
/// would cost more than serving it.
const FORGET_DELAY: Duration = Duration::from_millis(1);

/// From this many requests in one go on, the worker does not sleep: the ring might run full.
const MAX_BATCHED_FORGETS: usize = 32;

/// The threads that the rings of one device share.
pub(super) struct DeviceScheduler {
    handler: Arc<dyn Handler>,
    pool: Option<Arc<ThreadPool>>,
    blocking_pool: Arc<BlockingPool>,
    busy_poll: Duration,
}

impl DeviceScheduler {
    /// Starts the thread pool if the options ask for one.
    ///
    /// Once `stopping` is set, the blocking pool discards queued requests instead of running them.
    ///
    /// # Errors
    /// No thread of the pool can be started.
    pub(super) fn new(
        options: &Options,
        handler: &Arc<dyn Handler>,
        stopping: &Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let pool = match options.thread_pool_size {
            0 => None,
            // Its flag is never set: when the device ends, it runs what is queued.
            size if options.thread_pool_grows => Some(Arc::new(ThreadPool::growing(
                size,
                handler,
                &Arc::default(),
            )?)),
            size => Some(Arc::new(ThreadPool::new(size, handler, &Arc::default())?)),
        };
        let blocking_pool = BlockingPool::new(
            options.blocking_threads(),
            Arc::clone(handler),
            Arc::clone(stopping),
        );
        Ok(Self {
            handler: Arc::clone(handler),
            pool,
            blocking_pool: Arc::new(blocking_pool),
            busy_poll: options.busy_poll,
        })
    }

    /// The scheduler for the ring of this index.
    pub(super) fn for_ring(&self, index: usize) -> RingScheduler {
        let strategy = match &self.pool {
            // FORGET and INTERRUPT must not queue behind the requests that fill the pool.
            _ if index == HIGH_PRIORITY => Strategy::BatchForgets,
            Some(pool) => Strategy::Pooled(Arc::clone(pool)),
            None => Strategy::Inline {
                busy_poll: BusyPoll::new(self.busy_poll),
                coalescing: InterruptCoalescing::default(),
            },
        };
        RingScheduler {
            handler: Arc::clone(&self.handler),
            blocking_pool: Arc::clone(&self.blocking_pool),
            strategy,
            idle_since: None,
            slept: None,
        }
    }
}

/// Schedules the requests of one ring.
pub(super) struct RingScheduler {
    handler: Arc<dyn Handler>,
    blocking_pool: Arc<BlockingPool>,
    strategy: Strategy,
    /// When the worker ran out of requests, while it sleeps.
    idle_since: Option<Instant>,
    /// How long the ring was idle before the kick, until the first request is served.
    slept: Option<Duration>,
}

/// Where a ring's requests run.
enum Strategy {
    Inline {
        busy_poll: BusyPoll,
        coalescing: InterruptCoalescing,
    },
    Pooled(Arc<ThreadPool>),
    BatchForgets,
}

/// How the requests of one batch run, and when the device returns their replies.
pub(super) struct Batch {
    io_mode: IoMode,
    notify_mode: NotifyMode,
    /// Whether the coalescing measures the batch.
    is_measured: bool,
    /// When the batch began, or when it last returned replies; `None` if it returns each at once.
    withheld_since: Option<Instant>,
}

impl RingScheduler {
    /// The worker wakes up. Returns when it ran out of requests, if it slept before.
    pub(super) fn wake(&mut self) -> Option<Instant> {
        let idle_since = self.idle_since.take();
        self.slept = idle_since.map(|since| since.elapsed());
        idle_since
    }

    /// The worker sleeps until the next kick. It ran out of requests at `idle_since`.
    pub(super) fn sleep(&mut self, idle_since: Instant) {
        self.idle_since = Some(idle_since);
    }

    /// How long the worker sleeps, notifications off, after it served `served` requests in one go.
    pub(super) fn forget_delay(&self, served: usize) -> Option<Duration> {
        let delays = matches!(self.strategy, Strategy::BatchForgets)
            && (1..MAX_BATCHED_FORGETS).contains(&served);
        delays.then_some(FORGET_DELAY)
    }

    /// Polls for the next request with `has_request`, if the strategy does and a request is likely.
    /// Returns whether one came.
    pub(super) fn poll(&mut self, idle_since: Instant, has_request: impl Fn() -> bool) -> bool {
        let Strategy::Inline { busy_poll, .. } = &mut self.strategy else {
            return false;
        };
        if let Some(slept) = self.slept.take() {
            busy_poll.record_sleep(slept);
        }
        busy_poll.poll(|| idle_since.elapsed(), has_request)
    }

    /// Begins a batch of `taken` requests, with `in_flight` requests of the ring in flight, those
    /// included.
    pub(super) fn begin_batch(&mut self, taken: usize, in_flight: usize) -> Batch {
        let io_mode = match in_flight {
            1 => IoMode::Blocking,
            _ => IoMode::NonBlocking,
        };
        let (notify_mode, is_measured) = match &mut self.strategy {
            Strategy::Inline { coalescing, .. } if taken > 1 => {
                (coalescing.begin(preemptions), true)
            }
            // A pool's threads return each reply themselves.
            Strategy::Inline { .. } | Strategy::Pooled(_) => (NotifyMode::Immediate, false),
            Strategy::BatchForgets => (NotifyMode::Batched, false),
        };
        Batch {
            io_mode,
            notify_mode,
            is_measured,
            withheld_since: (notify_mode == NotifyMode::Batched).then(Instant::now),
        }
    }

    /// Runs a request of the batch, here or on the pool.
    pub(super) fn run(&self, ring: &Vring, request: Box<Request>, batch: &Batch) -> Handled {
        match &self.strategy {
            Strategy::Pooled(pool) => {
                pool.submit(request);
                Handled::Kept
            }
            Strategy::Inline { .. } | Strategy::BatchForgets => {
                run(&*self.handler, ring, request, batch.io_mode)
            }
        }
    }

    /// Runs a request that was running when the worker before died.
    pub(super) fn recover(
        &self,
        ring: &Vring,
        request: Box<Request>,
        interrupted: Interrupted,
    ) -> Handled {
        recover(&*self.handler, ring, request, interrupted)
    }

    /// What a request takes of the guest's limits.
    pub(super) fn cost(&self, request: &mut Request) -> Cost {
        self.handler.cost(request)
    }

    /// Answers a request with an error, without running it.
    pub(super) fn refuse(&self, request: &mut Request) {
        self.handler.refuse(request);
    }

    /// Runs a request that would block on the blocking pool, or here if the pool is full.
    pub(super) fn offload(&self, request: Box<Request>) {
        if let Err(request) = self.blocking_pool.try_submit(request) {
            run_to_end(&*self.handler, request);
        }
    }

    /// Ends the batch, after its replies have been returned.
    pub(super) fn end_batch(&mut self, batch: &Batch) {
        if let Strategy::Inline { coalescing, .. } = &mut self.strategy
            && batch.is_measured
        {
            coalescing.end(preemptions);
        }
    }
}

impl Batch {
    /// Whether the worker returns its `withheld` replies now, after one of `reply_len` bytes.
    pub(super) fn is_due(&mut self, withheld: usize, reply_len: u32) -> bool {
        let is_late = withheld.is_multiple_of(CLOCK_INTERVAL)
            && self
                .withheld_since
                .is_some_and(|since| since.elapsed() >= MAX_REPLY_DELAY);
        let is_due =
            self.notify_mode == NotifyMode::Immediate || is_late || reply_len >= LARGE_REPLY;
        if is_due {
            self.withheld_since = self.withheld_since.map(|_| Instant::now());
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(notify_mode: NotifyMode) -> Batch {
        Batch {
            io_mode: IoMode::Blocking,
            notify_mode,
            is_measured: false,
            withheld_since: (notify_mode == NotifyMode::Batched).then(Instant::now),
        }
    }

    #[test]
    fn replies_are_due_at_once_unless_the_batch_withholds_them() {
        assert!(batch(NotifyMode::Immediate).is_due(1, 0));
        assert!(!batch(NotifyMode::Batched).is_due(1, LARGE_REPLY - 1));
        assert!(batch(NotifyMode::Batched).is_due(1, LARGE_REPLY));
    }

    #[test]
    fn withheld_replies_are_due_once_they_are_late() {
        let mut batch = batch(NotifyMode::Batched);
        batch.withheld_since = Instant::now().checked_sub(MAX_REPLY_DELAY);
        assert!(batch.withheld_since.is_some());
        assert!(
            !batch.is_due(CLOCK_INTERVAL - 1, 0),
            "the clock is not read"
        );
        assert!(batch.is_due(CLOCK_INTERVAL, 0));
        assert!(!batch.is_due(CLOCK_INTERVAL, 0), "the delay begins again");
    }
}
