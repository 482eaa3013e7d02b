//! A request of the guest on its way through the daemon, and who handles it.

use std::sync::Arc;

use super::memory::GuardedMemory;
use super::vring::Vring;
use crate::sys::buffers::{Reader, Segments, Writer};
use crate::sys::interrupt::Interruption;

/// Serves requests. Several threads call it at once.
pub trait Handler: Send + Sync + 'static {
    /// Serves `request` and says with [`Request::set_reply_len`] how much it wrote. A handler that has to wait for
    /// something another request may bring about (a lock) keeps the request, returns `None` and calls
    /// [`Request::finish`] later, from a thread of its own. One that would have to wait for a disk where
    /// [`Request::may_block`] says no does nothing, and calls [`Request::set_would_block`]; it gets the request again on another
    /// thread.
    fn handle(&self, request: Box<Request>) -> Option<Box<Request>>;

    /// The connection ends: requests that wait fail, and so do those that would begin to.
    fn end_waits(&self);

    /// The driver has reset the device, or has gone: whatever it held is freed.
    fn reset(&self);
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
    pub(super) may_block: bool,
    would_block: bool,
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
            may_block: true,
            would_block: false,
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

    /// Whether serving it may wait for a disk: no other request waits for this one.
    pub fn may_block(&self) -> bool {
        self.may_block
    }

    /// Says that serving it would have to wait, and that nothing was done.
    pub fn set_would_block(&mut self) {
        self.would_block = true;
    }

    pub(super) fn would_block(&self) -> bool {
        self.would_block
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
        self.may_block = true;
        self.would_block = false;
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
