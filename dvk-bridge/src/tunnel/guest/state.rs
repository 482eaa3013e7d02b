//! What a guest's threads share, behind one lock: its rings, the requests that wait to be sent or
//! sent again, and its session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gangplank_rings::refuse;
use gangplank_vhost_backend::{Memory, Ring};
use gangplank_vhost_user::client::FsConfig;
use gangplank_vhost_user::feature;

use super::inflight::{Former, Inflight};
use super::job::{Class, Job, Next, Outcome, Place};
use super::memory::RequestMemory;
use crate::tunnel::wire::HIPRIO_SLOT;

/// Wait before a request that takes long is asked for again; it doubles up to the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// Wait before a request is sent again after an error of the connection.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Longest time between two rings that a guest wants back together.
const BETWEEN_RINGS: Duration = Duration::from_secs(1);

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
    /// The guest asks for what only the server knows, and the server is not reached.
    #[error("it asks for the tag, which only {server} knows (or set --tag): {why}")]
    Untold {
        /// The server.
        server: String,
        /// Why it does not tell.
        why: String,
    },
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

impl Fatal {
    fn unnoted(source: std::io::Error) -> Self {
        let what = "note the requests in flight in the memory that the frontend keeps";
        Self::System { what, source }
    }
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
    /// Its last request was given up. The server interrupts that one when it gets the next of the
    /// slot.
    is_given_up: bool,
}

/// A request that a worker exchanges.
#[derive(Debug)]
struct Exchange {
    job: Job,
    place: Place,
    bytes: Arc<RequestMemory>,
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
    /// Requests that were sent again after such an exchange.
    pub(super) resent: u64,
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
    /// Why the server was not asked for a session when that was last tried.
    pub(super) unreached: Option<String>,
    waiting: Vec<Job>,
    exchanges: Vec<Exchange>,
    /// The workers that wait, the last one last.
    pub(super) idle: Vec<u16>,
    slots: Vec<Slot>,
    /// A ring that the guest wants back.
    pub(super) stopping: Option<usize>,
    /// When requests of such a ring failed last because they took long.
    given_up: Option<Instant>,
    /// Sessions that are not used any more.
    pub(super) unused: Vec<u32>,
    /// The notes for the next tunnel.
    inflight: Option<Inflight>,
    /// The session of the tunnel before this one, which is to go on.
    pub(super) former: Option<Former>,
    /// The random number of such a one's device, which the guest has reset.
    forgotten: Option<u64>,
    /// The random number of the device whose session is open.
    generation: u64,
    /// Endpoints for requests that the server has.
    queues: u16,
    pub(super) is_ending: bool,
    /// The program ends, and leaves the session to the next tunnel.
    pub(super) is_left: bool,
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
            unreached: None,
            waiting: Vec::new(),
            exchanges: Vec::new(),
            idle: Vec::new(),
            slots: Vec::new(),
            stopping: None,
            given_up: None,
            unused: Vec::new(),
            inflight: None,
            former: None,
            forgotten: None,
            generation: 0,
            queues: 0,
            is_ending: false,
            is_left: false,
            fatal: None,
            counters: Counters {
                replied: 0,
                refused: 0,
                unreached: 0,
                resent: 0,
                losses: 0,
            },
        }
    }

    pub(super) fn fail(&mut self, fatal: Fatal) {
        self.fatal.get_or_insert(fatal);
    }

    /// Why the guest's connection is to be closed, if it is. The guest's threads end.
    pub(super) fn take_fatal(&mut self) -> Option<Fatal> {
        let fatal = self.fatal.take();
        self.is_ending |= fatal.is_some();
        fatal
    }

    /// Requests that wait to be sent, or asked for again.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting.len()
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
        while let Some(at) = self
            .waiting
            .iter()
            .position(|job| job.class() == class && self.end_of(job) <= now)
        {
            let job = self.waiting.remove(at);
            self.refuse(&job);
        }
        let session = match self.session {
            Session::Open(session) if index <= self.queues => Some(session),
            _ => None,
        };
        if let Some(session) = session
            && let Some(memory) = self.memory.clone()
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
                self.note_ring(job.ring, |inflight| {
                    inflight.place(job.ring, job.head, place)
                });
                job.deadline = self.end_of(&job);
                if std::mem::take(&mut job.is_in_doubt) {
                    self.counters.resent += 1;
                }
                let bytes = Arc::new(RequestMemory::new(memory, Arc::clone(&job.chain)));
                self.exchanges.push(Exchange {
                    job: job.clone(),
                    place,
                    bytes: Arc::clone(&bytes),
                });
                return Next::Send(job, place, bytes);
            }
            self.waiting.push(job);
        }
        let jobs = self.waiting.iter().filter(|job| job.class() == class);
        let times = jobs.flat_map(|job| {
            let due = session.map(|_| job.due);
            [Some(self.end_of(job)), due]
        });
        Next::Wait(times.flatten().filter(|time| *time > now).min())
    }

    /// When a request fails. While the server is heard of, it waits: for a slot, for instance,
    /// which requests for locks may hold.
    fn end_of(&self, job: &Job) -> Instant {
        job.deadline.max(self.heard + self.limit)
    }

    /// Whether requests of a ring took too long a moment ago, and nothing was heard of the server
    /// since.
    pub(super) fn has_just_given_up(&self) -> bool {
        let is_recent = |time: &Instant| *time >= self.heard && time.elapsed() < BETWEEN_RINGS;
        self.given_up.as_ref().is_some_and(is_recent)
    }

    /// The guest has wanted a ring back for too long: its requests fail, those too that are being
    /// exchanged. The server may carry such a one out, but copies nothing to the guest any more.
    pub(super) fn give_up(&mut self, ring: usize) {
        self.given_up = Some(Instant::now());
        let is_of_ring = |job: &Job| job.ring == ring;
        let waiting = std::mem::take(&mut self.waiting);
        let (waiting, kept) = waiting.into_iter().partition(is_of_ring);
        self.waiting = kept;
        let exchanges = std::mem::take(&mut self.exchanges);
        let (exchanged, kept): (Vec<_>, _) =
            exchanges.into_iter().partition(|one| one.job.ring == ring);
        self.exchanges = kept;
        let exchanged = exchanged.into_iter().map(|exchange| {
            exchange.bytes.give_back();
            exchange.job
        });
        for job in waiting.into_iter().chain(exchanged) {
            self.refuse(&job);
        }
    }

    /// Whether worker number `index` sends requests of the request rings.
    pub(super) const fn sends_requests(&self, index: u16) -> bool {
        index > 0 && index <= self.queues
    }

    fn free_slot(&self, class: Class) -> Option<usize> {
        let hiprio = usize::from(HIPRIO_SLOT);
        let slots = self.slots.iter().enumerate();
        let free =
            slots.filter(|(at, slot)| !slot.is_used && (*at == hiprio) == (class == Class::Urgent));
        // First those whose last request may wait for a lock still.
        free.min_by_key(|(_, slot)| !slot.is_given_up)
            .map(|(at, _)| at)
    }

    fn occupy(&mut self, session: u32, at: usize) -> Option<Place> {
        let slot = self.slots.get_mut(at)?;
        slot.is_used = true;
        slot.is_given_up = false;
        slot.number = slot.number.wrapping_add(1);
        Some(Place {
            session,
            slot: u16::try_from(at).ok()?,
            number: slot.number,
        })
    }

    /// Frees the slot of a request, unless its session is over.
    fn release(&mut self, job: &Job) {
        if let Some(slot) = self.slot_of(job) {
            slot.is_used = false;
        }
    }

    /// The slot of a request, unless its session is over.
    fn slot_of(&mut self, job: &Job) -> Option<&mut Slot> {
        let place = job.place;
        let place = place.filter(|place| self.session == Session::Open(place.session));
        place.and_then(|place| self.slots.get_mut(usize::from(place.slot)))
    }

    /// A worker has sent `job`, which had this place.
    pub(super) fn finish(&mut self, mut job: Job, place: Place, outcome: Outcome) {
        let now = Instant::now();
        let is_current = self.session == Session::Open(place.session);
        if matches!(outcome, Outcome::Done(_) | Outcome::Pending) {
            self.heard = now;
        }
        let mut exchanges = self.exchanges.iter();
        let Some(at) = exchanges.position(|exchange| exchange.place == place) else {
            // It was given up meanwhile.
            return;
        };
        self.exchanges.swap_remove(at);
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
                job.is_in_doubt = true;
                job.due = now + RETRY_PAUSE;
                self.waiting.push(job);
            }
        }
    }

    /// Answers a request with ENOTCONN, and gives up its slot.
    fn refuse(&mut self, job: &Job) {
        self.release(job);
        if let Some(slot) = self.slot_of(job) {
            slot.is_given_up = true;
        }
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
        self.note_ring(job.ring, |inflight| {
            inflight.begin_return(job.ring, job.head)
        });
        if let Some(in_flight) = self.in_flight.get_mut(job.ring) {
            *in_flight = in_flight.saturating_sub(1);
        }
        let (Some(memory), Some(ring)) = (self.memory.clone(), self.rings.get(job.ring)) else {
            return;
        };
        let Some(queue) = ring.queue(&memory, event_idx) else {
            return;
        };
        let given = queue.give_back(job.head, written).and_then(|is_awaited| {
            if is_awaited {
                ring.signal_call();
            }
            queue.used_index()
        });
        match given {
            Ok(used) => {
                self.note_ring(job.ring, |inflight| {
                    inflight.end_return(job.ring, job.head, used)
                });
            }
            Err(_) => self.fail(Fatal::Memory),
        }
    }
}

mod notes;
mod session;
mod taking;
#[cfg(test)]
mod tests;
