//! A request of the guest on its way through the daemon, and who handles it.

use std::sync::Arc;

use super::memory::GuardedMemory;
use super::vring::Vring;
use crate::sys::buffers::{Reader, Segments, Writer};
use crate::sys::interrupt::Interruption;

/// Serves requests. Several threads call it at once.
pub trait Handler: Send + Sync + 'static {
    /// Serves `request`, and sets the length of the reply with [`Request::set_reply_len`].
    fn handle(&self, request: Box<Request>, mode: IoMode) -> Handled;

    /// Fails all requests that wait for a lock, and refuses new waits: the connection ends.
    fn end_waits(&self);

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

/// One descriptor chain, taken off a ring and not yet given back.
///
/// It is given back once, by [`Request::finish`] or by the worker. One that is dropped instead is not given back, since the
/// driver would take whatever lies in its buffers for the reply; its ring is stopped.
pub struct Request {
    pub(super) readable: Segments,
    pub(super) writable: Segments,
    pub(super) origin: Option<Origin>,
    reply_len: u32,
    interruption: Option<Arc<Interruption>>,
    scratch: Scratch,
}

/// Buffers for the handler, with whatever they were left with; their allocation is kept from request to request.
#[derive(Default)]
pub struct Scratch {
    /// For what is copied out of the request.
    pub input: Vec<u8>,
    /// For what is put together before it goes into the reply.
    pub output: Vec<u8>,
}

/// Where a chain came from and must go back to.
pub(super) struct Origin {
    pub(super) ring: Vring,
    pub(super) head: u16,
    /// Keeps the segments mapped, even if the guest's memory table changes meanwhile.
    pub(super) memory: Arc<GuardedMemory>,
}

impl Request {
    pub(super) fn new() -> Self {
        Self {
            readable: Segments::default(),
            writable: Segments::default(),
            origin: None,
            reply_len: 0,
            interruption: None,
            scratch: Scratch::default(),
        }
    }

    /// What the guest sends, where its reply goes, and buffers to work in.
    pub fn parts(&mut self) -> (Reader<'_>, Writer<'_>, &mut Scratch) {
        let (reader, writer) = guest::buffers(&mut self.readable, &mut self.writable);
        (reader, writer, &mut self.scratch)
    }

    /// Says how many bytes of the reply were written. None, for a request without a reply.
    pub fn set_reply_len(&mut self, len: usize) {
        // A chain holds at most 2^32 bytes (virtio 1.2, 2.7.5.2), and the reply fits the chain.
        self.reply_len = u32::try_from(len).unwrap_or(u32::MAX);
    }

    pub(super) fn reply_len(&self) -> u32 {
        self.reply_len
    }

    /// Lets the device interrupt the thread that serves this request when its ring has to stop.
    pub fn set_interruption(&mut self, interruption: Arc<Interruption>) {
        if let Some(origin) = &self.origin {
            origin.ring.add_interruption(Arc::clone(&interruption));
        }
        self.interruption = Some(interruption);
    }

    /// Gives the chain back to the guest and tells it, if it wants to be told.
    pub fn finish(mut self) {
        if let Some(origin) = self.take_origin() {
            let used = [(origin.head, self.reply_len)];
            origin.ring.complete(&origin.memory, &used);
        }
    }

    /// Parts the request from its chain, which whoever takes the origin gives back.
    pub(super) fn take_origin(&mut self) -> Option<Origin> {
        let origin = self.origin.take()?;
        if let Some(interruption) = self.interruption.take() {
            origin.ring.remove_interruption(&interruption);
        }
        Some(origin)
    }

    /// Makes the request ready for the next chain.
    pub(super) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.reply_len = 0;
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(origin) = self.take_origin() {
            origin
                .ring
                .set_broken("a request was lost inside the daemon");
            origin.ring.discard(1);
        }
    }
}

/// The only place where guest addresses become readers and writers.
mod guest {
    #![allow(unsafe_code)] // vouches for guest memory being mapped while a request is out

    use super::{Reader, Segments, Writer};

    /// To be called with the segments of a [`super::Request`] only.
    pub(super) fn buffers<'a>(
        readable: &'a mut Segments,
        writable: &'a mut Segments,
    ) -> (Reader<'a>, Writer<'a>) {
        // SAFETY: a request's segments were translated from its `origin`'s memory, which keeps them mapped for as long as
        // the request lives, and the returned reader borrows from the request.
        let reader = unsafe { readable.reader() };
        // SAFETY: as above; guest memory is only ever reached by raw addresses, never by Rust references.
        let writer = unsafe { writable.writer() };
        (reader, writer)
    }
}
