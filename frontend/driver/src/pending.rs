//! A request in flight.

use std::marker::PhantomData;
use std::time::Duration;

use gangplank_fuse::{InterruptIn, NodeId, Opcode, Operation, Unique};

use super::error::{Error, Result};
use super::reply::{Decode, examine};
use super::sender::Sender;

/// A request in flight, that answers with a `T`.
///
/// Dropped, nobody waits for it any longer; what it asked for happens all the same.
#[must_use = "nobody waits for the answer"]
pub struct Pending<T> {
    sender: Sender,
    request_slot: RequestSlot,
    decode: Decode<T>,
    is_taken: bool,
    answers: PhantomData<T>,
}

/// Which request it is.
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

    /// Whether it is answered, so that [`Pending::wait`] does not wait.
    ///
    /// # Errors
    /// [`Error::Broken`]: it never will be.
    pub fn is_answered(&self) -> Result<bool> {
        self.sender
            .core
            .is_answered(self.request_slot.queue, self.request_slot.slot)
    }

    /// Waits for the answer, as long as the session's limit.
    ///
    /// # Errors
    /// The daemon's errno, or why there is no answer.
    pub fn wait(mut self) -> Result<T> {
        self.take(self.sender.limit)
    }

    /// Waits for the answer, no longer than `limit`. Afterwards nobody waits for it, whether it has come or not.
    ///
    /// # Errors
    /// The daemon's errno, or why there is no answer.
    pub fn wait_within(mut self, limit: Duration) -> Result<T> {
        self.take(limit)
    }

    /// Asks the daemon to abandon the request. It is answered all the same, with EINTR if the daemon gave it up.
    ///
    /// # Errors
    /// EAGAIN in [`Error::Errno`]: the daemon does not know the request yet, or any more; or why it could not be told.
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
