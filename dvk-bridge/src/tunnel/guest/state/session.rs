//! The guest's session: opened, lost, and left.

use std::time::Instant;

use gangplank_rings::opens_session;
use gangplank_service::rate_limited;

use super::super::job::Job;
use super::{Fatal, Session, Slot, State};

impl State {
    /// The session of the device with the random number `generation` is open, and has these slots
    /// and endpoints for requests.
    pub(in super::super) fn opened(
        &mut self,
        (session, generation, resumed): (u32, u64, bool),
        slots: u16,
        queues: u16,
    ) {
        self.queues = queues;
        self.slots = vec![Slot::default(); usize::from(slots)];
        match self.former {
            // It was asked for before the frontend told of the former one.
            Some(former) if former.generation != generation => {
                self.unused.push(session);
            }
            // It was asked for before the guest reset its device.
            None if self.forgotten == Some(generation) => self.unused.push(session),
            Some(former) if !resumed || former.session != session => {
                self.former = None;
                self.unused.push(session);
                self.session = Session::Open(session);
                self.lose(session);
            }
            Some(_) => {
                self.former = None;
                self.session = Session::Open(session);
                self.generation = generation;
                rate_limited!(
                    info,
                    "the guest goes on in the session of the tunnel before"
                );
                self.restore_slots();
            }
            None => {
                self.session = Session::Open(session);
                self.generation = generation;
                self.note_session(generation, session);
            }
        }
    }

    /// The session is lost: what waits fails.
    pub(in super::super) fn lose(&mut self, session: u32) {
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
    pub(in super::super) fn reset(&mut self) {
        if let Session::Open(session) = self.session {
            self.unused.push(session);
        }
        if let Some(former) = self.former.take() {
            self.unused.push(former.session);
            self.forgotten = Some(former.generation);
        }
        self.session = Session::Closed;
        self.inflight = None;
        self.rings.clear();
        self.in_flight.clear();
        self.features = None;
        self.setup += 1;
    }

    /// The guest has gone: its session is not used any more, unless the next tunnel goes on with
    /// it.
    pub(in super::super) fn leave_session(&mut self) {
        if let Session::Open(session) = self.session
            && !self.is_left
        {
            self.unused.push(session);
        }
    }

    /// Whether the server has to be told to close a session when the guest has gone.
    pub(in super::super) fn has_session_to_close(&self) -> bool {
        let is_closed = matches!(self.session, Session::Open(_)) && !self.is_left;
        is_closed || !self.unused.is_empty()
    }

    /// While the session is lost: a request that opens a session waits for a new one. All others
    /// fail.
    pub(super) fn refuse_or_open(&mut self, mut job: Job) {
        let Some(memory) = self.memory.clone() else {
            return;
        };
        match opens_session(&job.chain, &*memory) {
            Ok(true) => {
                rate_limited!(info, "the guest mounts anew");
                self.session = Session::Closed;
                if job.place.take().is_some() {
                    // That place was in the session that is lost.
                    self.note_ring(job.ring, |inflight| inflight.take(job.ring, job.head));
                }
                job.is_in_doubt = false;
                job.due = Instant::now();
                self.waiting.push(job);
            }
            Ok(false) => self.refuse(&job),
            Err(_) => self.fail(Fatal::Memory),
        }
    }
}
