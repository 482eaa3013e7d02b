//! Serves one ring: takes chains off it, runs their requests, returns them to the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::chain::{Chain, MalformedChain, Translator};
use super::memory::{GuardedMemory, MemoryCell};
use super::reminder::Reminder;
use super::request::{Cost, Handled, Request};
use super::ring_throttle::RingThrottle;
use super::scheduling::{Batch, RingScheduler};
use super::vring::Vring;
use crate::state::requests::{Interrupted, Pending};

/// Most chains that the worker takes off the ring at a time.
const BATCH: usize = 32;

/// The state that one ring's thread keeps from kick to kick.
pub(super) struct Worker {
    scheduler: RingScheduler,
    memory: Arc<MemoryCell>,
    /// Set when the device ends, because a guest may never run out of requests.
    stopping: Arc<AtomicBool>,
    translator: Translator,
    /// The chains of the current batch.
    chains: Vec<Chain>,
    /// Replies to return: the chain's head and the bytes written into it.
    used: Vec<(u16, u32)>,
    reminder: Reminder,
    /// The guest's limits, if it has any.
    throttle: Option<RingThrottle>,
    /// A request whose allocations the next chain reuses.
    spare: Option<Box<Request>>,
}

impl Worker {
    /// A worker that runs requests as `scheduler` decides, in the guest memory of `memory`, within
    /// the limits of `throttle`, and takes no more chains once `stopping` is set.
    pub(super) fn new(
        scheduler: RingScheduler,
        memory: Arc<MemoryCell>,
        stopping: Arc<AtomicBool>,
        throttle: Option<RingThrottle>,
    ) -> Self {
        Self {
            scheduler,
            memory,
            stopping,
            translator: Translator::default(),
            chains: Vec::with_capacity(BATCH),
            used: Vec::with_capacity(BATCH),
            reminder: Reminder::default(),
            throttle,
            spare: None,
        }
    }

    /// The timer of the guest's limits has woken the thread.
    pub(super) fn wake_from_throttle(&self) {
        if let Some(throttle) = &self.throttle {
            throttle.wake();
        }
    }

    /// Serves the ring until no chain is available and none is likely to come soon, the guest is
    /// over its limits, or the device ends.
    pub(super) fn serve(&mut self, ring: &Vring) {
        let mut idle_since = self.scheduler.wake();
        if let Some(pending) = ring.take_pending() {
            self.recover(ring, pending);
        }
        loop {
            let memory = self.memory.current();
            ring.suppress_notifications(&memory);
            let served = self.drain(ring);
            if memory.is_truncated() {
                ring.set_broken("the frontend truncated the guest's memory while it was mapped");
            }
            if self.is_stopping() || ring.is_broken() {
                return;
            }
            if let Some(throttle) = &self.throttle
                && let Some(wait) = throttle.wait()
                && ring.has_available(&memory)
            {
                // The driver need not notify: the timer does.
                throttle.sleep(wait);
                self.scheduler.sleep(Instant::now());
                return;
            }
            if let Some(delay) = self.scheduler.forget_delay(served) {
                // Drop the memory map before sleeping, so that a new memory table can free it.
                drop(memory);
                std::thread::sleep(delay);
                continue;
            }
            if served > 0 {
                idle_since = None;
            }
            let idle = idle_since.unwrap_or_else(Instant::now);
            let reminder = &self.reminder;
            let has_untaken = || ring.has_untaken(&memory);
            let has_request = || {
                ring.has_available(&memory) || {
                    reminder.look(has_untaken, || ring.signal_again());
                    false
                }
            };
            if served > 0 && self.scheduler.poll(idle, has_request) {
                continue;
            }
            if reminder.wait(has_request, has_untaken) {
                continue;
            }
            if !ring.allow_notifications(&memory) {
                self.scheduler.sleep(idle);
                return;
            }
        }
    }

    /// Serves batches until no chain is available or the device ends. Returns the number of chains.
    fn drain(&mut self, ring: &Vring) -> usize {
        let mut served = 0;
        while !self.is_stopping() {
            match self.serve_batch(ring) {
                0 => break,
                taken => served += taken,
            }
        }
        served
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Takes a batch of chains, runs their requests, and completes them. Returns the number of
    /// chains: 0 also if the guest is over its limits.
    fn serve_batch(&mut self, ring: &Vring) -> usize {
        let memory = self.memory.current();
        let (limit, admitted) = self.admit(ring, &memory);
        if limit == 0 {
            return 0;
        }
        let mut in_flight = ring.take(&memory, limit, &mut self.chains);
        if limit < BATCH && ring.has_available(&memory) {
            // The chains that are left wait for these as well.
            in_flight += 1;
        }
        if self.chains.is_empty() {
            return 0;
        }
        let mut chains = std::mem::take(&mut self.chains);
        let taken = chains.len();

        let mut batch = self.scheduler.begin_batch(taken, in_flight);
        for chain in chains.drain(..) {
            self.run(chain, ring, &memory, &mut batch, admitted);
        }
        self.chains = chains;

        self.complete(ring, &memory);
        self.scheduler.end_batch(&batch);
        taken
    }

    /// How many chains may be taken now, and what they may cost.
    fn admit(&mut self, ring: &Vring, memory: &Arc<GuardedMemory>) -> (usize, Admitted) {
        match self.throttle.as_ref().map(RingThrottle::wait) {
            None => (BATCH, Admitted::Any),
            // One by one: each may leave nothing for the next.
            Some(None) => (1, Admitted::Any),
            Some(Some(_)) if self.next_is_free(ring, memory) => (1, Admitted::Free),
            Some(Some(_)) => (0, Admitted::Free),
        }
    }

    /// Whether the ring's next request is one that is never delayed.
    fn next_is_free(&mut self, ring: &Vring, memory: &Arc<GuardedMemory>) -> bool {
        let Some(chain) = ring.peek(memory) else {
            return false;
        };
        let mut request = self.spare.take().unwrap_or_default();
        let cost = request
            .look_at(chain, memory, &mut self.translator, |request| {
                self.scheduler.cost(request)
            })
            // Taking the chain reports that it is malformed.
            .unwrap_or_default();
        self.spare = Some(request);
        cost.is_free()
    }

    /// Finishes the requests that the worker before has left, and notifies the driver, who may have
    /// missed the notification of the last replies.
    fn recover(&mut self, ring: &Vring, pending: Vec<(Chain, Pending)>) {
        let memory = self.memory.current();
        let count = pending.len();
        // Replies are returned at once, and requests wait for a disk elsewhere if there are others.
        for (chain, pending) in pending {
            let mut batch = self.scheduler.begin_batch(1, count);
            match pending {
                Pending::Done(len) => self.used.push((chain.head, len)),
                Pending::Taken => self.run(chain, ring, &memory, &mut batch, Admitted::Any),
                Pending::Interrupted(interrupted) => {
                    self.run_again(chain, interrupted, ring, &memory, &mut batch);
                }
            }
            self.complete(ring, &memory);
        }
        if ring.notify() {
            self.reminder.signalled();
        }
    }

    /// Runs a request that was running when the worker before died, unless too many died of it.
    fn run_again(
        &mut self,
        chain: Chain,
        interrupted: Interrupted,
        ring: &Vring,
        memory: &Arc<GuardedMemory>,
        batch: &mut Batch,
    ) {
        let Some(mut request) = self.attach(chain, ring, memory) else {
            return;
        };
        if interrupted.is_poisoned {
            let (sent, room) = request.sizes();
            log::error!(
                "a request of a guest is answered EIO, since its workers died while they served \
                 it: opcode {}, {sent} bytes, and {room} bytes of room for the reply; please \
                 report this",
                interrupted.opcode
            );
            self.scheduler.refuse(&mut request);
            self.reply(request, ring, memory, batch);
            return;
        }
        match self.scheduler.recover(ring, request, interrupted) {
            Handled::Replied(request) | Handled::WouldBlock(request) => {
                self.reply(request, ring, memory, batch);
            }
            Handled::Kept => {}
        }
    }

    /// Runs the request of one chain, and completes replies that are due.
    fn run(
        &mut self,
        chain: Chain,
        ring: &Vring,
        memory: &Arc<GuardedMemory>,
        batch: &mut Batch,
        admitted: Admitted,
    ) {
        let Some(mut request) = self.attach(chain, ring, memory) else {
            return;
        };
        if let Some(throttle) = &self.throttle {
            let cost = self.scheduler.cost(&mut request);
            let cost = match admitted {
                Admitted::Any => cost,
                // The guest may have changed it since it was looked at.
                Admitted::Free => Cost::default(),
            };
            request.set_charge(throttle.charge(cost));
        }
        match self.scheduler.run(ring, request, batch) {
            Handled::Replied(request) => self.reply(request, ring, memory, batch),
            Handled::WouldBlock(request) => self.offload(request, chain, ring, memory),
            Handled::Kept => {}
        }
    }

    /// Makes a request of a chain. If the chain is malformed, stops the ring.
    fn attach(
        &mut self,
        chain: Chain,
        ring: &Vring,
        memory: &Arc<GuardedMemory>,
    ) -> Option<Box<Request>> {
        let mut request = self.spare.take().unwrap_or_default();
        if let Err(malformed) = request.attach(chain, ring, memory, &mut self.translator) {
            set_malformed(ring, chain, malformed);
            // The request is not attached, so it does not discard the chain itself.
            ring.discard(1);
            self.spare = Some(request);
            return None;
        }
        Some(request)
    }

    /// Records the reply of a request, and completes the replies so far if they are due.
    fn reply(
        &mut self,
        mut request: Box<Request>,
        ring: &Vring,
        memory: &GuardedMemory,
        batch: &mut Batch,
    ) {
        if let Some((head, len)) = request.detach() {
            self.used.push((head, len));
            if batch.is_due(self.used.len(), len) {
                self.complete(ring, memory);
            }
        }
        self.spare = Some(request);
    }

    /// Has another thread run a request that would block.
    fn offload(
        &mut self,
        mut request: Box<Request>,
        chain: Chain,
        ring: &Vring,
        memory: &GuardedMemory,
    ) {
        // The request may run here after all, and then the replies so far would wait for it.
        self.complete(ring, memory);
        request.park();
        match request.rewind(&mut self.translator) {
            Ok(()) => self.scheduler.offload(request),
            Err(malformed) => {
                set_malformed(ring, chain, malformed);
                request.discard();
            }
        }
    }

    /// Returns the chains of the replies so far to the driver.
    fn complete(&mut self, ring: &Vring, memory: &GuardedMemory) {
        if !self.used.is_empty() {
            if ring.complete(memory, &self.used) {
                self.reminder.signalled();
            }
            self.used.clear();
        }
    }
}

/// Which requests may start.
#[derive(Clone, Copy)]
enum Admitted {
    Any,
    /// Those that cost nothing: the guest is over its limits.
    Free,
}

fn set_malformed(ring: &Vring, chain: Chain, malformed: MalformedChain) {
    ring.set_broken(&format!(
        "the descriptor chain at {} is malformed: {malformed}",
        chain.head
    ));
}
