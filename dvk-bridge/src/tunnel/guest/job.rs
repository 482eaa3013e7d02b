//! A guest's request on its way: what a worker gets, and how sending it ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_rings::Chain;

use super::memory::RequestMemory;
use super::state::Fatal;

/// Which requests a worker sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Those of the high-priority ring.
    Urgent,
    /// All others.
    Request,
}

/// A request that was taken off its ring.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) ring: usize,
    pub(super) head: u16,
    pub(super) chain: Arc<Chain>,
    pub(super) readable: u32,
    pub(super) writable: u32,
    /// Its place in the session, once it was sent.
    pub(super) place: Option<Place>,
    /// When it fails unless the server is heard of.
    pub(super) deadline: Instant,
    /// When it is sent, or asked for, next.
    pub(super) due: Instant,
    pub(super) pause: Duration,
    /// An exchange for it failed, after which the server may have it or not.
    pub(super) is_in_doubt: bool,
}

impl Job {
    pub(super) const fn class(&self) -> Class {
        match self.ring {
            0 => Class::Urgent,
            _ => Class::Request,
        }
    }
}

/// Where a request is in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The session.
    pub(super) session: u32,
    /// The slot.
    pub(super) slot: u16,
    /// Its number in the slot.
    pub(super) number: u32,
}

/// What a worker does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Send this request, which has this place and these bytes.
    Send(Job, Place, Arc<RequestMemory>),
    /// Wait, at most until then.
    Wait(Option<Instant>),
    /// End.
    End,
}

/// How many requests were taken off the rings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// For the first worker.
    pub(super) urgent: usize,
    /// For the others.
    pub(super) requests: usize,
}

/// How sending a request ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The reply has this many bytes.
    Done(u32),
    /// The server has it, and the daemon has not replied.
    Pending,
    /// The server was not reached.
    Unreached,
    /// The session is lost.
    Lost,
    /// The guest's connection is to be closed.
    Fatal(Fatal),
}
