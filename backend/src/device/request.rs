//! A request of the guest, and the trait that serves it.

use std::sync::Arc;

use super::chain::{Chain, MalformedChain, Translator};
use super::memory::GuardedMemory;
use super::ring_throttle::Charge;
pub use super::throttle::Cost;
use super::vring::Vring;
use crate::state::migration::TransferError;
use crate::state::requests::{Current, Interrupted};
use crate::sys::buffers::{Reader, Segments, Writer};
use crate::sys::interrupt::Interruption;
use crate::trace::{self, Tracer};

/// Serves requests. Several threads call it at once.
pub trait Handler: Send + Sync + 'static {
    /// Serves `request`, and sets the length of the reply with [`Request::set_reply_len`].
    fn handle(&self, request: Box<Request>, mode: IoMode) -> Handled;

    /// Serves a request that was running when the worker before died, and may have been carried out
    /// in part or as a whole. It may wait for a disk.
    fn recover(&self, request: Box<Request>, interrupted: Interrupted) -> Handled {
        let _ = interrupted;
        self.handle(request, IoMode::Blocking)
    }

    /// Answers a request with an error instead of serving it, since workers died of it.
    fn refuse(&self, request: &mut Request) {
        request.set_reply_len(0);
    }

    /// What `request` takes of the guest's limits. Consumes nothing of it.
    fn cost(&self, request: &mut Request) -> Cost {
        let _ = request;
        Cost {
            operations: 1,
            ..Cost::default()
        }
    }

    /// Fails all requests that wait for a lock, and refuses new waits: the connection ends.
    fn end_waits(&self);

    /// The state of the driver's session, for another daemon. Changes nothing.
    ///
    /// # Errors
    /// The session cannot leave.
    fn save_state(&self) -> Result<Vec<u8>, TransferError> {
        Err(TransferError::Unsupported)
    }

    /// Goes on with the session that another daemon has saved, in place of the current one.
    ///
    /// # Errors
    /// The session cannot be taken over. Then there is none.
    fn load_state(&self, stream: &[u8]) -> Result<(), TransferError> {
        let _ = stream;
        Err(TransferError::Unsupported)
    }

    /// Frees everything that the driver holds: it has reset the device, or its guest has gone.
    fn reset(&self);
}

/// Whether a handler may wait for a disk while it serves a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// The handler may wait: no other request waits for this one.
    Blocking,
    /// The handler returns [`Handled::WouldBlock`] instead of waiting.
    NonBlocking,
}

/// What a handler did with a request.
pub enum Handled {
    /// The handler wrote the reply.
    Replied(Box<Request>),
    /// The request would wait for a disk, and the handler did nothing; the device hands the request
    /// in again on a thread that may wait. Only in [`IoMode::NonBlocking`].
    WouldBlock(Box<Request>),
    /// The handler kept the request, because it waits for an event that another request may cause
    /// (the release of a lock). It calls [`Request::finish`] later, on a thread of its own.
    Kept,
}

/// The request of one descriptor chain that was taken off a ring and not yet returned.
///
/// The device returns the chain once: with [`Request::finish`], or with the rest of a batch. If the
/// request is dropped before, the device stops the ring instead, because the driver would take the
/// content of the chain's buffers for the reply.
#[derive(Default)]
pub struct Request {
    /// Buffers with the request, and with room for the reply. Empty while `origin` is `None`.
    readable: Segments,
    writable: Segments,
    origin: Option<Origin>,
    /// Bytes of the reply.
    reply_len: u32,
    /// Interrupts the thread that serves the request while it waits for a lock.
    interruption: Option<Arc<Interruption>>,
    /// What the request was charged, if the guest has limits.
    charge: Option<Charge>,
    scratch: Scratch,
}

/// Buffers for the handler. They keep their content and allocation from request to request.
#[derive(Default)]
pub struct Scratch {
    /// For the part of the request that is copied out of guest memory.
    pub input: Vec<u8>,
    /// For replies that are composed before they are copied into guest memory.
    pub output: Vec<u8>,
    /// What the request was charged, if the guest has limits. The handler refuses to do more than
    /// that: the guest can change a request after the device has asked for its cost.
    pub charged: Option<Cost>,
    /// What the request's record of `--trace` needs.
    pub trace: trace::Pending,
}

/// The ring and chain of a request.
struct Origin {
    ring: Vring,
    chain: Chain,
    /// Keeps the segments mapped, even if the guest's memory table changes meanwhile.
    memory: Arc<GuardedMemory>,
}

impl Request {
    /// Returns the request's buffers: what the guest sent, room for the reply, and scratch space.
    pub fn parts(&mut self) -> (Reader<'_>, Writer<'_>, &mut Scratch) {
        let (reader, writer) = guest::buffers(&mut self.readable, &mut self.writable);
        (reader, writer, &mut self.scratch)
    }

    /// Sets the length of the reply in bytes: 0 for an operation without a reply.
    pub fn set_reply_len(&mut self, len: usize) {
        // A chain holds at most 2^32 bytes (virtio 1.2, 2.7.5.2), and the reply fits the chain.
        self.reply_len = u32::try_from(len).unwrap_or(u32::MAX);
    }

    /// The request begins to wait, and has done nothing that may not be done again. A worker that
    /// dies meanwhile does not count against it.
    pub fn park(&self) {
        if let Some(origin) = &self.origin
            && let Some(requests) = origin.ring.requests()
        {
            requests.park(origin.chain.head);
        }
    }

    /// The calling thread runs the request, until the returned value is dropped.
    pub(super) fn start(&self) -> Option<Current> {
        let origin = self.origin.as_ref()?;
        let requests = origin.ring.requests()?;
        requests.start(origin.chain.head);
        Some(Current::enter(requests, origin.chain.head))
    }

    /// Bytes that the driver has left to read and room for the reply.
    pub(super) fn sizes(&mut self) -> (usize, usize) {
        let (reader, writer, _) = self.parts();
        (reader.remaining(), writer.remaining())
    }

    /// The request was charged what it costs.
    pub(super) fn set_charge(&mut self, charge: Charge) {
        self.scratch.charged = Some(charge.cost());
        self.charge = Some(charge);
    }

    /// Writes the request's record: it has its reply of `len` bytes.
    pub fn end_trace(&mut self, tracer: &Tracer, len: usize) {
        let ring = self.ring_index();
        let Scratch { input, trace, .. } = &mut self.scratch;
        tracer.end(trace, ring, input, len);
    }

    /// The calling thread leaves the request to another one.
    pub fn leave_trace(&mut self, tracer: &Tracer) {
        tracer.leave(&mut self.scratch.trace);
    }

    /// The number of the ring that it came by.
    fn ring_index(&self) -> u16 {
        let origin = self.origin.as_ref();
        let requests = origin.and_then(|origin| origin.ring.requests());
        requests.map_or(0, |requests| requests.index())
    }

    /// Lets the device interrupt the thread that serves this request when its ring has to stop.
    pub fn set_interruption(&mut self, interruption: Arc<Interruption>) {
        if let Some(origin) = &self.origin {
            origin.ring.add_interruption(Arc::clone(&interruption));
        }
        self.interruption = Some(interruption);
    }

    /// Returns the chain with the reply to the driver, and notifies the driver unless it suppresses
    /// notifications.
    pub fn finish(mut self) {
        if let Some(origin) = self.take_origin() {
            origin.ring.mark_written(origin.chain, &origin.memory);
            origin.ring.note_reply(origin.chain.head, self.reply_len);
            let used = [(origin.chain.head, self.reply_len)];
            origin.ring.complete(&origin.memory, &used);
        }
    }

    /// Makes this the request of `chain`, taken off `ring`, whose buffers lie in `memory`.
    ///
    /// # Errors
    /// The chain is malformed. The request then has no chain.
    pub(super) fn attach(
        &mut self,
        chain: Chain,
        ring: &Vring,
        memory: &Arc<GuardedMemory>,
        translator: &mut Translator,
    ) -> Result<(), MalformedChain> {
        self.reply_len = 0;
        self.readable.set_copied(memory.may_stall());
        self.writable.set_copied(memory.may_stall());
        translator
            .translate(chain, memory, &mut self.readable, &mut self.writable)
            .inspect_err(|_| self.clear_segments())?;
        self.origin = Some(Origin {
            ring: ring.clone(),
            chain,
            memory: Arc::clone(memory),
        });
        Ok(())
    }

    /// Calls `look` with the request of a chain that is not taken off its ring.
    ///
    /// # Errors
    /// The chain is malformed.
    pub(super) fn look_at<T>(
        &mut self,
        chain: Chain,
        memory: &Arc<GuardedMemory>,
        translator: &mut Translator,
        look: impl FnOnce(&mut Self) -> T,
    ) -> Result<T, MalformedChain> {
        let translated =
            translator.translate(chain, memory, &mut self.readable, &mut self.writable);
        // `memory` keeps the segments mapped until they are cleared.
        let looked = translated.map(|()| look(self));
        self.clear_segments();
        looked
    }

    /// Translates the chain again, after a handler has used up the buffers without serving it.
    ///
    /// # Errors
    /// The driver has made the chain malformed meanwhile.
    pub(super) fn rewind(&mut self, translator: &mut Translator) -> Result<(), MalformedChain> {
        self.clear_segments();
        let Some(origin) = &self.origin else {
            return Ok(());
        };
        translator.translate(
            origin.chain,
            &origin.memory,
            &mut self.readable,
            &mut self.writable,
        )
    }

    /// The ring of the request's chain.
    pub(super) fn ring(&self) -> Option<&Vring> {
        self.origin.as_ref().map(|origin| &origin.ring)
    }

    /// Detaches the request from its chain and returns the chain's head and the reply's length. The
    /// caller returns them to the ring.
    pub(super) fn detach(&mut self) -> Option<(u16, u32)> {
        let origin = self.take_origin()?;
        // Before the reply counts as complete, so that the next worker need not mark anything.
        origin.ring.mark_written(origin.chain, &origin.memory);
        origin.ring.note_reply(origin.chain.head, self.reply_len);
        Some((origin.chain.head, self.reply_len))
    }

    /// Removes the chain from those in flight without returning it: its ring is stopped, or the
    /// device ends.
    pub(super) fn discard(mut self) {
        if let Some(origin) = self.take_origin() {
            origin.ring.discard(1);
        }
    }

    fn take_origin(&mut self) -> Option<Origin> {
        self.clear_segments();
        let origin = self.origin.take()?;
        if let Some(charge) = self.charge.take() {
            self.scratch.charged = None;
            charge.settle(self.reply_len);
        }
        if let Some(interruption) = self.interruption.take() {
            origin.ring.remove_interruption(&interruption);
        }
        Some(origin)
    }

    fn clear_segments(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(origin) = self.take_origin() {
            origin
                .ring
                .set_broken("a request was lost inside the daemon; please report this");
            origin.ring.discard(1);
        }
    }
}

/// The only place where guest addresses become readers and writers.
mod guest {
    #![allow(unsafe_code)] // relies on the request keeping guest memory mapped

    use super::{Reader, Segments, Writer};

    /// Only for the segments of a [`super::Request`].
    pub(super) fn buffers<'a>(
        readable: &'a mut Segments,
        writable: &'a mut Segments,
    ) -> (Reader<'a>, Writer<'a>) {
        // SAFETY: a request's segments are empty, or lie in its `origin`'s memory or in that which
        // the caller of `look_at` holds, which keeps them mapped as long as the reader borrows the
        // request.
        let reader = unsafe { readable.reader() };
        // SAFETY: as above; only raw pointers access guest memory, never Rust references.
        let writer = unsafe { writable.writer() };
        (reader, writer)
    }
}
