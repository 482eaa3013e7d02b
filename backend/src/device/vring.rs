//! A ring as the device uses it: vhost-user-backend's ring, drained when it stops, and with
//! descriptors whose status flags stay as the frontend set them.

mod in_flight;
mod kick;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard as StdMutexGuard, OnceLock};

use gangplank_service::rate_limited;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use super::chain::{Chain, Table, Translator};
use super::dirty_log::DirtyLog;
use super::memory::GuardedMemory;
use super::notifier::Notifier;
use crate::state::inflight::InflightRing;
use crate::state::requests::{Pending, RingRequests};
use crate::sys::interrupt::{BlockedThread, Interruption};

/// Bytes of the used ring's flags, index and event index (virtio 1.2, 2.7.8).
const USED_RING_HEAD: u64 = 6;

/// Bytes of one of its entries.
const USED_ENTRY: u64 = 8;

/// The guest's memory as vhost-user-backend keeps it. The device's rings use a
/// [`super::memory::MemoryCell`] instead.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A handle to one ring; clones are the same ring.
#[derive(Clone)]
pub(super) struct Vring(Arc<Inner>);

struct Inner {
    state: VringMutex<Memory>,
    in_flight: Mutex<InFlight>,
    /// Signalled when no chain is in flight any more.
    drained: Condvar,
    /// The driver broke the ring's rules. The device takes no chains until the frontend sets the
    /// ring up again.
    broken: AtomicBool,
    /// See [`Vring::set_draining`].
    draining: AtomicBool,
    /// The last size that the frontend set is not a power of two.
    size_refused: AtomicBool,
    /// The descriptor of SET_VRING_CALL, on which the device reports used chains.
    call: Notifier,
    /// The descriptor of SET_VRING_ERR, on which the device reports a broken ring.
    error: Notifier,
    /// The ring's thread while it reads the kick descriptor.
    reading_kick: BlockedThread,
    /// Where the requests in flight outlive the process.
    requests: OnceLock<Arc<RingRequests>>,
    /// Which pages of the guest's memory are written to.
    log: OnceLock<Arc<DirtyLog>>,
    /// What the worker before has left, until the ring's thread takes it.
    pending: Mutex<Vec<(Chain, Pending)>>,
    has_pending: AtomicBool,
    /// Where the frontend keeps the requests in flight, if it does.
    inflight: Mutex<Option<Arc<InflightRing>>>,
    has_inflight: AtomicBool,
}

#[derive(Default)]
struct InFlight {
    /// Chains taken off the ring and not yet returned.
    chains: usize,
    /// Threads in [`Vring::drain`]. While it is 0, completing a batch makes no futex call.
    drainers: usize,
    /// Threads that serve one of the chains and wait for a lock.
    interruptions: Vec<Arc<Interruption>>,
}

impl Vring {
    /// Takes up to `limit` chains off the ring into `chains`, and none if the ring is stopped,
    /// disabled or broken. Returns how many chains are then in flight, earlier ones included.
    ///
    /// The caller translates the chains in the same `memory`.
    pub(super) fn take(
        &self,
        memory: &GuardedMemory,
        limit: usize,
        chains: &mut Vec<Chain>,
    ) -> usize {
        let mut state = self.0.state.get_mut();
        if !self.takes_chains(&state) {
            return 0;
        }
        let before = chains.len();
        let mut in_flight = self.in_flight();
        // A correct driver has at most one chain per ring entry in flight. One that offers a chain
        // again while it is in flight could make the daemon hold any number.
        let room = usize::from(state.get_queue().size()).saturating_sub(in_flight.chains);
        let available = is_available(state.get_queue(), memory);
        let result = available.and_then(|is_available| {
            let queue = state.get_queue_mut();
            let table = Table {
                address: queue.desc_table(),
                entries: queue.size(),
            };
            let available = queue.iter(&**memory)?.take(limit.min(room));
            chains.extend(available.map(|chain| Chain {
                head: chain.head_index(),
                table,
            }));
            Ok(is_available && chains.len() == before)
        });
        let is_offered_twice = self.note_taken(state.get_queue_mut(), chains, before);
        in_flight.chains += chains.len() - before;
        let taken = in_flight.chains;
        drop(in_flight);
        drop(state);
        match result {
            _ if is_offered_twice => {
                self.set_broken("its driver offers chains that are in flight");
            }
            Ok(false) => {}
            Ok(true) if room == 0 => self.set_broken("its driver offers chains that are in flight"),
            // The index announces chains, but the ring's entries cannot be read.
            Ok(true) => self.set_broken("its available ring does not lie in guest memory"),
            Err(error) => {
                self.set_broken(&format!("its available ring cannot be used: {error}"));
            }
        }
        taken
    }

    /// Returns chains to the driver, each as its head and the bytes written into it, and notifies
    /// the driver unless it suppresses notifications. Returns whether the driver may miss the
    /// notification: see [`super::reminder`].
    pub(super) fn complete(&self, memory: &GuardedMemory, used: &[(u16, u32)]) -> bool {
        let mut state = self.0.state.get_mut();
        let queue = state.get_queue_mut();
        let requests = self.requests();
        let inflight = self.inflight();
        let added = used.iter().try_for_each(|(head, len)| {
            if let Some(requests) = requests {
                requests.publish(*head, queue.next_used(), *len);
            }
            if let Some(inflight) = &inflight {
                inflight.begin_return(*head);
            }
            queue.add_used(&**memory, *head, *len)?;
            if let Some(inflight) = &inflight {
                inflight.end_return(*head, queue.next_used());
            }
            if let Some(requests) = requests {
                requests.free(*head);
            }
            Ok(())
        });
        self.mark_used_ring(queue);
        // Under the ring's lock: from now on the driver may offer these chains again.
        self.discard(used.len());
        match added.and_then(|()| queue.needs_notification(&**memory)) {
            Ok(true) => {
                self.0.call.signal();
                self.0.call.is_stream()
            }
            Ok(false) => false,
            Err(error) => {
                self.set_broken(&format!("its used ring cannot be written: {error}"));
                false
            }
        }
    }

    /// Whether the driver has not taken all chains that were returned to it. False if it does not
    /// tell (`VIRTIO_F_EVENT_IDX`).
    pub(super) fn has_untaken(&self, memory: &GuardedMemory) -> bool {
        let state = self.0.state.get_ref();
        let queue = state.get_queue();
        // Behind the available ring's flags, index and entries (virtio 1.2, 2.7.6).
        let used_event = 4 + 2 * u64::from(queue.size());
        let Some(address) = queue.avail_ring().checked_add(used_event) else {
            return false;
        };
        if !queue.event_idx_enabled() || !queue.ready() {
            return false;
        }
        let taken = memory.load(GuestAddress(address), Ordering::Acquire);
        taken.is_ok_and(|taken| u16::from_le(taken) != queue.next_used())
    }

    /// Notifies the driver again, of chains that it was notified of.
    pub(super) fn signal_again(&self) {
        self.0.call.signal();
    }

    /// Removes chains from the count in flight without returning them to the driver.
    pub(super) fn discard(&self, count: usize) {
        let mut in_flight = self.in_flight();
        in_flight.chains = in_flight.chains.saturating_sub(count);
        if in_flight.chains == 0 && in_flight.drainers > 0 {
            self.0.drained.notify_all();
        }
    }

    /// Asks the driver not to kick while the worker serves the ring.
    pub(super) fn suppress_notifications(&self, memory: &GuardedMemory) {
        let mut state = self.0.state.get_mut();
        // If the ring cannot be written, `complete` reports it.
        let _ = state.get_queue_mut().disable_notification(&**memory);
        self.mark_used_ring(state.get_queue());
    }

    /// Whether `take` may find a chain.
    pub(super) fn has_available(&self, memory: &GuardedMemory) -> bool {
        let state = self.0.state.get_ref();
        // If the ring cannot be read, `take` reports it.
        is_available(state.get_queue(), memory).unwrap_or(true)
    }

    /// The next chain, which stays in the ring. `None` if there is none, the ring does not run, or
    /// it cannot be read, which [`Self::take`] reports.
    pub(super) fn peek(&self, memory: &GuardedMemory) -> Option<Chain> {
        let mut state = self.0.state.get_mut();
        if !self.takes_chains(&state) {
            return None;
        }
        let queue = state.get_queue_mut();
        let table = Table {
            address: queue.desc_table(),
            entries: queue.size(),
        };
        let next = queue.iter(&**memory).ok()?.next()?.head_index();
        queue.go_to_previous_position();
        Some(Chain { head: next, table })
    }

    /// Asks the driver to kick again. Returns whether chains became available meanwhile.
    pub(super) fn allow_notifications(&self, memory: &GuardedMemory) -> bool {
        let mut state = self.0.state.get_mut();
        if !self.takes_chains(&state) {
            return false;
        }
        let enabled = state.get_queue_mut().enable_notification(&**memory);
        self.mark_used_ring(state.get_queue());
        enabled.unwrap_or(false)
    }

    /// Marks pages in `log` from now on.
    pub(super) fn keep_log(&self, log: &Arc<DirtyLog>) {
        let _ = self.0.log.set(Arc::clone(log));
        // The worker before may have died between writing and marking.
        self.mark_used_ring(self.0.state.get_ref().get_queue());
    }

    /// Marks the pages to which the request of a chain may have written.
    pub(super) fn mark_written(&self, chain: Chain, memory: &GuardedMemory) {
        if let Some(log) = self.log() {
            let mut translator = Translator::default();
            translator.writable(chain, memory, |address, len| log.mark(address, len.into()));
        }
    }

    fn mark_used_ring(&self, queue: &Queue) {
        if let Some(log) = self.log() {
            log.mark(
                queue.used_ring(),
                USED_RING_HEAD + USED_ENTRY * u64::from(queue.size()),
            );
        }
    }

    /// The log if pages are to be marked.
    fn log(&self) -> Option<&DirtyLog> {
        let log = self.0.log.get()?;
        log.is_on().then_some(log)
    }

    /// Stops the ring until the frontend sets it up again; reports that to the frontend and, once,
    /// to the log.
    pub(super) fn set_broken(&self, reason: &str) {
        if self.0.broken.swap(true, Ordering::Relaxed) {
            return;
        }
        rate_limited!(error, "a ring is stopped: {reason}");
        self.0.error.signal();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Relaxed)
    }

    /// The frontend has disabled the ring, and the worker before has left requests: they are
    /// finished, and no others are taken until the ring was disabled once more.
    pub(super) fn set_draining(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    fn takes_chains(&self, state: &VringState<Memory>) -> bool {
        state.is_enabled()
            && state.get_queue().ready()
            && !self.is_broken()
            && !self.0.draining.load(Ordering::Relaxed)
    }

    /// The connection ends: a notification that would wait for the frontend is dropped. The thread
    /// that already waits needs [`Vring::wake_blocked`], until the ring's threads have ended.
    pub(super) fn end_notifications(&self) {
        self.0.call.end();
        self.0.error.end();
    }

    /// Wakes the threads that wait for room in one of the frontend's descriptors, or for a kick
    /// that another process took.
    pub(super) fn wake_blocked(&self) {
        self.0.call.wake();
        self.0.error.wake();
        self.0.reading_kick.wake();
    }

    pub(super) fn add_interruption(&self, interruption: Arc<Interruption>) {
        self.in_flight().interruptions.push(interruption);
    }

    pub(super) fn remove_interruption(&self, interruption: &Arc<Interruption>) {
        self.in_flight()
            .interruptions
            .retain(|other| !Arc::ptr_eq(other, interruption));
    }

    /// Waits until no chain is in flight. Interrupts requests that wait for a lock.
    fn drain(&self) {
        let mut in_flight = self.in_flight();
        in_flight.drainers += 1;
        while in_flight.chains > 0 {
            let interruptions = std::mem::take(&mut in_flight.interruptions);
            if !interruptions.is_empty() {
                drop(in_flight);
                interruptions
                    .iter()
                    .for_each(|interruption| interruption.interrupt());
                in_flight = self.in_flight();
                continue;
            }
            self.0.drained.wait_for(&mut in_flight, DRAIN_RECHECK);
        }
        in_flight.drainers -= 1;
    }

    fn in_flight(&self) -> MutexGuard<'_, InFlight> {
        // No thread leaves the fields inconsistent when it panics.
        self.0.in_flight.lock()
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = StdMutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = StdMutexGuard<'a, VringState<Memory>>;
}

/// The interface to vhost-user-backend. Its own ring does everything but stopping, descriptors and
/// the broken state.
impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self(Arc::new(Inner {
            state: VringMutex::new(memory, max_queue_size)?,
            in_flight: Mutex::default(),
            drained: Condvar::new(),
            broken: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            size_refused: AtomicBool::new(false),
            call: Notifier::default(),
            error: Notifier::default(),
            reading_kick: BlockedThread::default(),
            requests: OnceLock::new(),
            log: OnceLock::new(),
            pending: Mutex::default(),
            has_pending: AtomicBool::new(false),
            inflight: Mutex::default(),
            has_inflight: AtomicBool::new(false),
        })))
    }

    fn get_ref(&self) -> StdMutexGuard<'_, VringState<Memory>> {
        self.0.state.get_ref()
    }

    fn get_mut(&self) -> StdMutexGuard<'_, VringState<Memory>> {
        self.0.state.get_mut()
    }

    fn add_used(&self, head: u16, len: u32) -> Result<(), QueueError> {
        self.0.state.add_used(head, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.call.signal();
        Ok(())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.0.state.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.0.state.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.0.state.needs_notification()
    }

    /// Disabling drains the ring: it is all that User Mode Linux does to reset a device.
    fn set_enabled(&self, enabled: bool) {
        self.0.state.set_enabled(enabled);
        if !enabled {
            self.drain();
            self.0.draining.store(false, Ordering::Relaxed);
        }
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), QueueError> {
        if self.0.size_refused.load(Ordering::Relaxed) {
            return Err(QueueError::InvalidSize);
        }
        if self.0.broken.swap(false, Ordering::Relaxed)
            && let Some(requests) = self.requests()
            && self.in_flight().chains == 0
        {
            // Chains that were given up when the ring broke.
            requests.clear();
            if let Some(inflight) = self.inflight() {
                inflight.keep(&[], self.0.state.get_ref().get_queue().next_used());
            }
        }
        self.0
            .state
            .set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.state.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.state.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.0.state.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.0.state.queue_used_idx()
    }

    /// Remembers an invalid size; `set_queue_info` can refuse it, and this method cannot.
    fn set_queue_size(&self, size: u16) {
        self.0.state.set_queue_size(size);
        let taken = self.0.state.get_ref().get_queue().size() == size;
        self.0.size_refused.store(!taken, Ordering::Relaxed);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.state.set_queue_event_idx(enabled);
    }

    /// Stopping drains the ring, so that the base in the reply to GET_VRING_BASE covers all chains
    /// taken.
    fn set_queue_ready(&self, ready: bool) {
        self.0.state.set_queue_ready(ready);
        if !ready {
            self.drain();
        }
    }

    fn set_kick(&self, file: Option<File>) {
        self.0.state.set_kick(file);
    }

    /// A kick that another read has consumed already is no error; an unreadable descriptor is one.
    fn read_kick(&self) -> io::Result<bool> {
        let state = self.0.state.get_ref();
        let is_enabled = state.is_enabled();
        let read = state.get_kick().as_ref().map(|kick| {
            let _reading = self.0.reading_kick.enter();
            kick::read(kick)
        });
        drop(state);
        match read.unwrap_or(Err(Errno::AGAIN)) {
            // A descriptor at its end stays readable, and the thread would never sleep again.
            Ok(0) => {
                self.set_broken("the other end of its kick descriptor is closed");
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(is_enabled),
            Err(error) => {
                self.set_broken(&format!("its kick descriptor cannot be read: {error}"));
                Err(error.into())
            }
        }
    }

    fn set_call(&self, file: Option<File>) {
        self.0.call.set(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.error.set(file);
    }
}

/// Whether the driver's available index announces a chain.
fn is_available(queue: &Queue, memory: &GuestMemoryMmap) -> Result<bool, QueueError> {
    let index = queue.avail_idx(memory, Ordering::Acquire)?;
    Ok(index.0 != queue.next_avail())
}

/// How often `drain` interrupts requests that began to wait for a lock meanwhile.
const DRAIN_RECHECK: std::time::Duration = std::time::Duration::from_millis(20);
