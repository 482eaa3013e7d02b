//! What a guest's threads share, behind one lock: its rings, the requests that wait to be sent or
//! sent again, and its session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_rings::{Chain, QueueError, opens_session, refuse};
use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_backend::{Memory, Ring};
use gangplank_vhost_user::client::FsConfig;
use gangplank_vhost_user::feature;

use super::job::{Class, Job, Next, Outcome, Place, Taken};
use crate::tunnel::wire::{HIPRIO_SLOT, MAX_BYTES};

/// Chains that are taken off a ring at once.
const BATCH: usize = 128;

/// Pieces of a chain at most: twice the pages of the longest request or reply, and some for
/// headers. A chain of more costs memory, and no driver makes it.
const MAX_PIECES: usize = 600;

/// Wait before a request that takes long is asked for again; it doubles up to the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// Wait before a request is sent again after an error of the connection.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why a guest's connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fatal {
    /// The guest's memory cannot be reached where a ring or a request is.
    #[error("its rings or requests lie outside its memory")]
    Memory,
    /// A request is longer than any that INIT allows.
    #[error("it sends a request of {readable} bytes with room for {writable}")]
    Lengths {
        /// Bytes to read.
        readable: u64,
        /// Bytes to write.
        writable: u64,
    },
    /// The server does not keep to the protocol, or refuses the guest.
    #[error("the server {0}")]
    Server(String),
    /// The host refused a resource.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// The guest's session at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    /// There is none yet: the link opens it.
    Closed,
    /// It is in use.
    Open(u32),
    /// It is lost, until the guest mounts anew.
    Lost,
}

/// A slot of the session.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    number: u32,
    is_used: bool,
}

/// What has happened to a guest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// Requests with a reply.
    pub(super) replied: u64,
    /// Requests that failed here with ENOTCONN.
    pub(super) refused: u64,
    /// Exchanges that the server was not reached for.
    pub(super) unreached: u64,
    /// Sessions that were lost.
    pub(super) losses: u64,
}

/// What a guest's threads share.
#[derive(Debug)]
pub(super) struct State {
    limit: Duration,
    /// When the server was last heard of.
    heard: Instant,
    pub(super) rings: Vec<Ring>,
    pub(super) memory: Option<Arc<Memory>>,
    pub(super) features: Option<u64>,
    /// Requests of each ring that have no reply.
    pub(super) in_flight: Vec<usize>,
    /// Grows whenever the rings' kick descriptors or their readiness may have changed.
    pub(super) setup: u64,
    pub(super) session: Session,
    /// The device's configuration as the server tells it.
    pub(super) config: Option<FsConfig>,
    waiting: Vec<Job>,
    /// The workers that wait, the last one last.
    pub(super) idle: Vec<u16>,
    slots: Vec<Slot>,
    /// A ring that the guest wants back: its requests fail after this time.
    pub(super) stopping: Option<(usize, Instant)>,
    /// Sessions that are not used any more.
    pub(super) unused: Vec<u32>,
    /// Endpoints for requests that the server has.
    queues: u16,
    pub(super) is_ending: bool,
    pub(super) fatal: Option<Fatal>,
    pub(super) counters: Counters,
}

impl State {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            heard: Instant::now(),
            rings: Vec::new(),
            memory: None,
            features: None,
            in_flight: Vec::new(),
            setup: 0,
            session: Session::Closed,
            config: None,
            waiting: Vec::new(),
            idle: Vec::new(),
            slots: Vec::new(),
            stopping: None,
            unused: Vec::new(),
            queues: 0,
            is_ending: false,
            fatal: None,
            counters: Counters {
                replied: 0,
                refused: 0,
                unreached: 0,
                losses: 0,
            },
        }
    }

    /// The session is open, and has these slots and endpoints for requests.
    pub(super) fn opened(&mut self, session: u32, slots: u16, queues: u16) {
        self.session = Session::Open(session);
        self.queues = queues;
        self.slots = vec![Slot::default(); usize::from(slots)];
    }

    /// The session is lost: what waits fails.
    pub(super) fn lose(&mut self, session: u32) {
        if self.session != Session::Open(session) {
            return;
        }
        self.session = Session::Lost;
        self.counters.losses += 1;
        rate_limited!(
            error,
            "the session at the server is lost, and requests fail until the guest mounts anew"
        );
        for job in std::mem::take(&mut self.waiting) {
            self.refuse_or_open(job);
        }
    }

    /// The device was reset: the next request is of a new session.
    pub(super) fn reset(&mut self) {
        if let Session::Open(session) = self.session {
            self.unused.push(session);
        }
        self.session = Session::Closed;
        self.rings.clear();
        self.in_flight.clear();
        self.features = None;
        self.setup += 1;
    }

    pub(super) fn fail(&mut self, fatal: Fatal) {
        self.fatal.get_or_insert(fatal);
    }

    /// Requests that wait to be sent, or asked for again.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes the requests off all rings.
    pub(super) fn take_requests(&mut self) -> Taken {
        let before = self.waiting.len();
        self.take_from_all();
        let taken = self.waiting.get(before..).unwrap_or_default();
        let urgent = taken.iter().filter(|job| job.class() == Class::Urgent);
        let urgent = urgent.count();
        Taken {
            urgent,
            requests: taken.len() - urgent,
        }
    }

    fn take_from_all(&mut self) {
        for index in 0..self.rings.len() {
            if let Err(error) = self.take_from(index) {
                if matches!(error, QueueError::Memory(_)) {
                    return self.fail(Fatal::Memory);
                }
                rate_limited!(error, "ring {index} is stopped: {}", error_chain(&error));
                if let Some(ring) = self.rings.get_mut(index) {
                    ring.broken = true;
                    ring.signal_error();
                }
            }
        }
    }

    fn take_from(&mut self, index: usize) -> Result<(), QueueError> {
        let event_idx = self.features.unwrap_or(0) & feature::EVENT_IDX != 0;
        let Some(memory) = self.memory.clone() else {
            return Ok(());
        };
        let Some(ring) = self.rings.get_mut(index) else {
            return Ok(());
        };
        if !ring.is_started || ring.broken {
            return Ok(());
        }
        ring.take_kicks();
        let Some(queue) = ring.queue(&memory, event_idx) else {
            return Ok(());
        };
        let before = self.in_flight.get(index).copied().unwrap_or_default();
        let mut taken = Vec::new();
        let mut base = ring.base;
        while taken.len() < BATCH
            && let Some((head, chain)) = queue.take(&mut base)?
        {
            if before + taken.len() >= usize::from(queue.size()) {
                return Err(QueueError::Overrun(1));
            }
            if chain.pieces() > MAX_PIECES {
                return Err(QueueError::Chain);
            }
            taken.push((head, chain));
        }
        if taken.len() == BATCH {
            // There may be more. Others come first.
            ring.signal_kick();
        }
        ring.base = base;
        for (head, chain) in taken {
            self.add(index, head, chain);
        }
        Ok(())
    }

    fn add(&mut self, ring: usize, head: u16, chain: Chain) {
        let (readable, writable) = (chain.readable_len(), chain.writable_len());
        let within = |len: u64| u32::try_from(len).ok().filter(|len| *len <= MAX_BYTES);
        let lengths = within(readable)
            .filter(|readable| *readable > 0)
            .zip(within(writable));
        let Some((readable, writable)) = lengths else {
            return self.fail(Fatal::Lengths { readable, writable });
        };
        let now = Instant::now();
        let job = Job {
            ring,
            head,
            chain: Arc::new(chain),
            readable,
            writable,
            place: None,
            deadline: now + self.limit,
            due: now,
            pause: FIRST_PAUSE,
        };
        if let Some(in_flight) = self.in_flight.get_mut(ring) {
            *in_flight += 1;
        }
        match self.session {
            Session::Lost => self.refuse_or_open(job),
            Session::Closed | Session::Open(_) => self.waiting.push(job),
        }
    }

    /// While the session is lost: a request that opens a session waits for a new one. All others
    /// fail.
    fn refuse_or_open(&mut self, mut job: Job) {
        let Some(memory) = self.memory.clone() else {
            return;
        };
        match opens_session(&job.chain, &*memory) {
            Ok(true) => {
                rate_limited!(info, "the guest mounts anew");
                self.session = Session::Closed;
                job.place = None;
                job.due = Instant::now();
                self.waiting.push(job);
            }
            Ok(false) => self.refuse(&job),
            Err(_) => self.fail(Fatal::Memory),
        }
    }

    /// What the worker with endpoint number `index` does next.
    pub(super) fn next(&mut self, index: u16) -> Next {
        if self.is_ending || self.fatal.is_some() {
            return Next::End;
        }
        let class = match index {
            0 => Class::Urgent,
            _ => Class::Request,
        };
        let now = Instant::now();
        while let Some(at) = self.waiting.iter().position(|job| {
            job.class() == class && (self.end_of(job) <= now || self.is_given_up(job, now))
        }) {
            let job = self.waiting.remove(at);
            self.refuse(&job);
        }
        let session = match self.session {
            Session::Open(session) if index <= self.queues => Some(session),
            _ => None,
        };
        if let Some(session) = session
            && let Some(at) = self.waiting.iter().position(|job| {
                let is_due = job.class() == class && job.due <= now;
                is_due && (job.place.is_some() || self.free_slot(class).is_some())
            })
        {
            let mut job = self.waiting.remove(at);
            if job.place.is_none() {
                let free = self.free_slot(class);
                job.place = free.and_then(|slot| self.occupy(session, slot));
            }
            if let Some(place) = job.place {
                job.deadline = self.end_of(&job);
                return Next::Send(job, place);
            }
            self.waiting.push(job);
        }
        let jobs = self.waiting.iter().filter(|job| job.class() == class);
        let stopping = self.stopping.map(|(_, until)| until);
        let times = jobs.flat_map(|job| {
            let due = session.map(|_| job.due);
            [Some(self.end_of(job)), due, stopping]
        });
        Next::Wait(times.flatten().filter(|time| *time > now).min())
    }

    /// When a request fails. While the server is heard of, it waits: for a slot, for instance,
    /// which requests for locks may hold.
    fn end_of(&self, job: &Job) -> Instant {
        job.deadline.max(self.heard + self.limit)
    }

    /// Whether the guest has wanted the ring back for too long.
    fn is_given_up(&self, job: &Job, now: Instant) -> bool {
        let stopping = self.stopping;
        stopping.is_some_and(|(ring, until)| ring == job.ring && until <= now)
    }

    /// Whether worker number `index` sends requests of the request rings.
    pub(super) const fn sends_requests(&self, index: u16) -> bool {
        index > 0 && index <= self.queues
    }

    fn free_slot(&self, class: Class) -> Option<usize> {
        let hiprio = usize::from(HIPRIO_SLOT);
        let mut slots = self.slots.iter().enumerate();
        let found =
            slots.find(|(at, slot)| !slot.is_used && (*at == hiprio) == (class == Class::Urgent));
        found.map(|(at, _)| at)
    }

    fn occupy(&mut self, session: u32, at: usize) -> Option<Place> {
        let slot = self.slots.get_mut(at)?;
        slot.is_used = true;
        slot.number = slot.number.wrapping_add(1);
        Some(Place {
            session,
            slot: u16::try_from(at).ok()?,
            number: slot.number,
        })
    }

    /// Frees the slot of a request, unless its session is over.
    fn release(&mut self, job: &Job) {
        let place = job.place;
        let place = place.filter(|place| self.session == Session::Open(place.session));
        let slot = place.and_then(|place| self.slots.get_mut(usize::from(place.slot)));
        if let Some(slot) = slot {
            slot.is_used = false;
        }
    }

    /// A worker has sent `job`, which had this place.
    pub(super) fn finish(&mut self, mut job: Job, place: Place, outcome: Outcome) {
        let now = Instant::now();
        let is_current = self.session == Session::Open(place.session);
        if matches!(outcome, Outcome::Done(_) | Outcome::Pending) {
            self.heard = now;
        }
        match outcome {
            Outcome::Done(written) => {
                self.release(&job);
                self.counters.replied += 1;
                self.give_back(&job, written);
            }
            Outcome::Lost => {
                self.lose(place.session);
                self.refuse_or_open(job);
            }
            Outcome::Fatal(fatal) => self.fail(fatal),
            // The server has forgotten it with the session.
            Outcome::Pending | Outcome::Unreached if !is_current => self.refuse(&job),
            Outcome::Pending => {
                job.deadline = now + self.limit;
                job.due = now + job.pause;
                job.pause = (job.pause * 2).min(LAST_PAUSE);
                self.waiting.push(job);
            }
            Outcome::Unreached => {
                self.counters.unreached += 1;
                job.due = now + RETRY_PAUSE;
                self.waiting.push(job);
            }
        }
    }

    /// Answers a request with ENOTCONN, and gives up its slot.
    fn refuse(&mut self, job: &Job) {
        self.release(job);
        self.counters.refused += 1;
        let Some(memory) = self.memory.clone() else {
            return;
        };
        match refuse(&job.chain, &*memory) {
            Ok(written) => self.give_back(job, written),
            Err(_) => self.fail(Fatal::Memory),
        }
    }

    fn give_back(&mut self, job: &Job, written: u32) {
        let event_idx = self.features.unwrap_or(0) & feature::EVENT_IDX != 0;
        if let Some(in_flight) = self.in_flight.get_mut(job.ring) {
            *in_flight = in_flight.saturating_sub(1);
        }
        let (Some(memory), Some(ring)) = (self.memory.clone(), self.rings.get(job.ring)) else {
            return;
        };
        let Some(queue) = ring.queue(&memory, event_idx) else {
            return;
        };
        match queue.give_back(job.head, written) {
            Ok(true) => ring.signal_call(),
            Ok(false) => {}
            Err(_) => self.fail(Fatal::Memory),
        }
    }
}

#[cfg(test)]
mod tests;
