//! Serving one ring: taking chains off it, handing them on, giving them back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::busy_poll::BusyPoll;
use super::chain::{Chain, Translator};
use super::interrupt_coalescing::{InterruptCoalescing, NotifyMode};
use super::memory::{GuardedMemory, MemoryCell};
use super::request::{Handled, Handler, IoMode, Origin, Request};
use super::thread_pool::{BlockingPool, ThreadPool};
use super::vring::Vring;
use crate::sys::thread;

/// Chains taken off the ring at a time.
const BATCH: usize = 32;

/// Replies of at least this many bytes are announced at once, not with the rest of their batch.
const LARGE_REPLY: u32 = 64 * 1024;

/// The others wait no longer than this for the rest of their batch, and the request at hand: files may lie on slow disks.
const MAX_REPLY_DELAY: Duration = Duration::from_micros(500);

/// After as many answers it is looked how long the batch has taken.
const CLOCK_INTERVAL: usize = 4;

/// How long requests are gathered on the high-priority ring before they are looked at, once there was one. FORGET comes by the
/// thousand, one by one, and nobody waits for it: waking up for each would cost more than all the rest of it.
const FORGET_DELAY: Duration = Duration::from_millis(1);

/// With as many at once gathering takes too long: the driver may run out of room.
const MAX_BATCHED_FORGETS: usize = 32;

/// What one worker keeps from kick to kick.
pub(super) struct Worker {
    handler: Arc<dyn Handler>,
    pool: Option<Arc<ThreadPool>>,
    blocking_pool: Arc<BlockingPool>,
    memory: Arc<MemoryCell>,
    /// Whether requests are gathered.
    batch_forgets: bool,
    /// Set when the device ends: a guest that never runs out of requests must not keep it from ending.
    stopping: Arc<AtomicBool>,
    chains: Vec<Chain>,
    translator: Translator,
    busy_poll: BusyPoll,
    coalescing: InterruptCoalescing,
    /// When there was nothing left to do.
    idle_since: Option<Instant>,
    done: Vec<(u16, u32)>,
    spare: Option<Box<Request>>,
}

impl Worker {
    /// Requests are served right here, or by `pool` where there is one; `batch_forgets` those that nobody waits for,
    /// and looks for others for up to `busy_poll`.
    pub(super) fn new(
        handler: Arc<dyn Handler>,
        pool: Option<Arc<ThreadPool>>,
        blocking_pool: Arc<BlockingPool>,
        batch_forgets: bool,
        busy_poll: Duration,
        memory: Arc<MemoryCell>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self {
            handler,
            pool,
            blocking_pool,
            batch_forgets,
            memory,
            stopping,
            chains: Vec::with_capacity(BATCH),
            translator: Translator::default(),
            busy_poll: BusyPoll::new(busy_poll),
            coalescing: InterruptCoalescing::default(),
            idle_since: None,
            done: Vec::with_capacity(BATCH),
            spare: None,
        }
    }

    /// Serves the ring until nothing is available, nor likely to be soon, or the device ends.
    pub(super) fn serve(&mut self, ring: &Vring) {
        let mut idle = self.idle_since.take();
        let mut slept = idle.map(|idle| idle.elapsed());
        loop {
            let memory = self.memory.current();
            ring.suppress_notifications(&memory);
            let served = self.drain(ring);
            if memory.is_truncated() {
                ring.set_broken("the guest's memory was cut off under it");
            }
            if self.is_stopping() || ring.is_broken() {
                return;
            }
            if self.batch_forgets && (1..MAX_BATCHED_FORGETS).contains(&served) {
                // What it is mapped at is not to be kept for longer than it is used.
                drop(memory);
                std::thread::sleep(FORGET_DELAY);
                continue;
            }
            if served > 0 {
                idle = None;
            }
            let idle_since = idle.unwrap_or_else(Instant::now);
            if served > 0 && !self.batch_forgets && self.pool.is_none() {
                if let Some(slept) = slept.take() {
                    self.busy_poll.record_sleep(slept);
                }
                if self
                    .busy_poll
                    .poll(|| idle_since.elapsed(), || ring.has_available(&memory))
                {
                    continue;
                }
            }
            if !ring.allow_notifications(&memory) {
                self.idle_since = Some(idle_since);
                return;
            }
        }
    }

    /// Serves what is available, and what becomes so meanwhile. How much that was.
    fn drain(&mut self, ring: &Vring) -> usize {
        let mut served = 0;
        while !self.is_stopping() {
            let memory = self.memory.current();
            let in_flight = ring.take(&memory, BATCH, &mut self.chains);
            if self.chains.is_empty() {
                break;
            }
            served += self.chains.len();
            self.serve_batch(ring, &memory, in_flight == 1);
        }
        served
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Serves what was taken; it `is_alone` if the driver has asked for nothing else.
    fn serve_batch(&mut self, ring: &Vring, memory: &Arc<GuardedMemory>, is_alone: bool) {
        let mut chains = std::mem::take(&mut self.chains);
        let is_batch = chains.len() > 1;
        // Nobody waits for what is gathered, and a pool's threads announce what they serve.
        let io_mode = match is_alone {
            true => IoMode::Blocking,
            false => IoMode::NonBlocking,
        };
        let coalesces = is_batch && !self.batch_forgets && self.pool.is_none();
        let mode = match () {
            () if self.batch_forgets => NotifyMode::Batched,
            () if coalesces => self.coalescing.begin(thread::preemptions),
            () => NotifyMode::Immediate,
        };
        let mut begun = (mode == NotifyMode::Batched).then(Instant::now);
        for chain in chains.drain(..) {
            let mut request = self
                .spare
                .take()
                .unwrap_or_else(|| Box::new(Request::new()));
            let head = chain.head;
            if !self.translate(chain, ring, memory, &mut request) {
                ring.discard(1);
                continue;
            }
            request.origin = Some(Origin {
                ring: ring.clone(),
                head,
                memory: Arc::clone(memory),
            });
            if let Some(pool) = &self.pool {
                pool.submit(request);
                continue;
            }
            match handle(&*self.handler, ring, request, io_mode) {
                Handled::WouldBlock(request) => self.offload(chain, ring, memory, request),
                Handled::Kept => {}
                Handled::Replied(mut served) => {
                    drop(served.take_origin());
                    self.done.push((head, served.reply_len()));
                    let takes_long = self.done.len().is_multiple_of(CLOCK_INTERVAL)
                        && begun.is_some_and(|begun| begun.elapsed() >= MAX_REPLY_DELAY);
                    if mode == NotifyMode::Immediate
                        || takes_long
                        || served.reply_len() >= LARGE_REPLY
                    {
                        self.complete(ring, memory);
                        begun = begun.map(|_| Instant::now());
                    }
                    self.spare = Some(served);
                }
            }
        }
        self.chains = chains;
        self.complete(ring, memory);
        if coalesces {
            self.coalescing.end(thread::preemptions);
        }
    }

    /// Has a helper serve a request that would keep others waiting.
    fn offload(
        &mut self,
        chain: Chain,
        ring: &Vring,
        memory: &GuardedMemory,
        mut request: Box<Request>,
    ) {
        // This may take long, if there is no helper after all.
        self.complete(ring, memory);
        // Nothing was done, but the segments are used up. A request that is dropped is counted off.
        if !self.translate(chain, ring, memory, &mut request) {
            return;
        }
        if let Err(request) = self.blocking_pool.try_submit(request)
            && let Handled::Replied(served) =
                handle(&*self.handler, ring, request, IoMode::Blocking)
        {
            served.finish();
        }
    }

    /// Makes `request` that of `chain`; or stops the ring, if the chain is malformed.
    fn translate(
        &mut self,
        chain: Chain,
        ring: &Vring,
        memory: &GuardedMemory,
        request: &mut Request,
    ) -> bool {
        request.clear();
        self.translator
            .translate(chain, memory, &mut request.readable, &mut request.writable)
            .inspect_err(|malformed| {
                ring.set_broken(&format!(
                    "the descriptor chain at {} is malformed: {malformed}",
                    chain.head
                ));
            })
            .is_ok()
    }

    fn complete(&mut self, ring: &Vring, memory: &GuardedMemory) {
        if !self.done.is_empty() {
            ring.complete(memory, &self.done);
            self.done.clear();
        }
    }
}

/// Calls the handler. Should it panic, then its ring is stopped and the daemon goes on.
pub(super) fn handle(
    handler: &dyn Handler,
    ring: &Vring,
    request: Box<Request>,
    mode: IoMode,
) -> Handled {
    catch_unwind(AssertUnwindSafe(|| handler.handle(request, mode))).unwrap_or_else(|_| {
        ring.set_broken("serving a request failed inside the daemon; please report this");
        Handled::Kept
    })
}
