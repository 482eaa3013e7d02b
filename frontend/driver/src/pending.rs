//! A request in flight.

use std::marker::PhantomData;
use std::time::Duration;

use gangplank_fuse::{InterruptIn, NodeId, Opcode, Operation, Unique};

use super::error::{Error, Result};
use super::reply::{Decode, examine};
use super::sender::Sender;

/// A request in flight, whose reply is a `T`.
///
/// Dropping it gives up the reply; the daemon carries the request out all the same.
#[must_use = "dropping it gives up the reply"]
pub struct Pending<T> {
    sender: Sender,
    request_slot: RequestSlot,
    decode: Decode<T>,
    is_taken: bool,
    answers: PhantomData<T>,
}

/// Identifies a request in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestSlot {
    pub(super) queue: usize,
    pub(super) slot: u16,
    pub(super) unique: Unique,
    pub(super) opcode: Opcode,
    pub(super) asked: u64,
}

impl<T> std::fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pending").field(&self.request_slot).finish()
    }
}

impl<T> Pending<T> {
    pub(super) const fn new(sender: Sender, request_slot: RequestSlot, decode: Decode<T>) -> Self {
        Self {
            sender,
            request_slot,
            decode,
            is_taken: false,
            answers: PhantomData,
        }
    }

    /// The request's number.
    pub const fn unique(&self) -> Unique {
        self.request_slot.unique
    }

    /// Whether the reply has come, so that [`Pending::wait`] returns at once.
    ///
    /// # Errors
    /// [`Error::Broken`] if the reply will never come.
    pub fn is_answered(&self) -> Result<bool> {
        self.sender
            .core
            .is_answered(self.request_slot.queue, self.request_slot.slot)
    }

    /// Waits for the reply, at most as long as the session's limit.
    ///
    /// # Errors
    /// The daemon's errno, or the reason why there is no reply.
    pub fn wait(mut self) -> Result<T> {
        self.take(self.sender.limit)
    }

    /// Waits for the reply, at most `limit`. Gives it up if it has not come by then.
    ///
    /// # Errors
    /// The daemon's errno, or the reason why there is no reply.
    pub fn wait_within(mut self, limit: Duration) -> Result<T> {
        self.take(limit)
    }

    /// Asks the daemon to abandon the request. The daemon replies all the same, with EINTR if it
    /// has abandoned the request.
    ///
    /// # Errors
    /// EAGAIN in [`Error::Errno`] if the daemon does not know the request yet, or has replied
    /// already; or the reason why INTERRUPT could not be sent.
    pub fn interrupt(&self) -> Result<()> {
        let unique = self.request_slot.unique.get();
        let operation = Operation::Interrupt(InterruptIn { unique });
        self.sender
            .send_hiprio(NodeId::default(), Unique::new(unique | 1), operation, true)
    }

    fn take(&mut self, limit: Duration) -> Result<T> {
        let RequestSlot {
            queue,
            slot,
            unique,
            opcode,
            asked,
        } = self.request_slot;
        let finished = self.sender.core.answer(queue, slot, opcode, limit)?;
        self.is_taken = true;
        let bad = |source| Error::Reply { opcode, source };
        let answer = examine(opcode, unique, asked, finished)?;
        (self.decode)(answer).map_err(bad)
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if !self.is_taken {
            self.sender
                .core
                .abandon(self.request_slot.queue, self.request_slot.slot);
        }
    }
}
