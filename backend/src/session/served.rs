//! What becomes of a request.

use super::events::EventRead;
use super::lock_waits::LockRequest;
use crate::state::counters::Message;

/// The result of serving a request.
#[derive(Debug)]
pub enum Served {
    /// The session wrote a reply of this many bytes: 0 for an operation without a reply.
    Replied(usize),
    /// The request waits for a lock that another owner holds.
    WaitsForLock(LockRequest),
    /// The request waits for changes.
    WaitsForEvents(EventRead),
    /// The request would wait for a disk, and the session did nothing. Only in
    /// [`super::IoMode::NonBlocking`].
    WouldBlock,
}

/// What became of a request.
pub(super) enum Outcome {
    Answered(Answer),
    WaitsForLock(LockRequest),
    WaitsForEvents(EventRead),
    WouldBlock,
}

/// A reply.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    /// Bytes of it: 0 for an operation without a reply.
    pub(super) len: usize,
    pub(super) is_error: bool,
}

impl Outcome {
    pub(super) const fn error(len: usize) -> Self {
        Self::Answered(Answer::error(len))
    }
}

impl Answer {
    pub(super) const fn error(len: usize) -> Self {
        Self {
            len,
            is_error: true,
        }
    }

    pub(super) const fn message(self, request: u64) -> Message {
        Message {
            request,
            reply: self.len,
            is_error: self.is_error,
        }
    }
}

impl From<Outcome> for Served {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Answered(answer) => Self::Replied(answer.len),
            Outcome::WaitsForLock(lock) => Self::WaitsForLock(lock),
            Outcome::WaitsForEvents(read) => Self::WaitsForEvents(read),
            Outcome::WouldBlock => Self::WouldBlock,
        }
    }
}
