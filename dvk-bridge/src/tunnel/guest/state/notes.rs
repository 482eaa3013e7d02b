//! The notes for the next tunnel, and what a tunnel finds in those of the one before.

use super::super::inflight::Inflight;
use super::{Fatal, Session, State};

impl State {
    /// Has the slots go on where the tunnel before has left them.
    pub(super) fn restore_slots(&mut self) {
        let Some(inflight) = &self.inflight else {
            return;
        };
        match inflight.numbers() {
            Ok(numbers) => {
                for (slot, number) in self.slots.iter_mut().zip(numbers) {
                    slot.number = number;
                }
            }
            Err(source) => return self.fail(Fatal::unnoted(source)),
        }
        self.restore_used();
    }

    /// Has those slots be used whose requests are in flight, in rings that have not started yet as
    /// well.
    pub(super) fn restore_used(&mut self) {
        let used = match self.inflight.as_ref().map(Inflight::used_slots) {
            Some(Ok(used)) => used,
            Some(Err(source)) => return self.fail(Fatal::unnoted(source)),
            None => return,
        };
        let waiting = self.waiting.iter().filter_map(|job| job.place);
        let exchanged = self.exchanges.iter().map(|exchange| exchange.place);
        // The others have slots of a session that is lost.
        let own = waiting
            .chain(exchanged)
            .filter(|place| self.session == Session::Open(place.session));
        let own: Vec<u16> = own.map(|place| place.slot).collect();
        for (slot, number) in self.slots.iter_mut().zip(0..) {
            slot.is_used = used.contains(&number) || own.contains(&number);
        }
    }

    /// The frontend keeps these notes. If a tunnel before has made them, its session goes on.
    pub(in super::super) fn set_inflight(&mut self, inflight: Inflight) {
        let former = match inflight.former() {
            Ok(former) => former,
            Err(source) => return self.fail(Fatal::unnoted(source)),
        };
        self.inflight = Some(inflight);
        match (former, self.session) {
            (Some(former), Session::Open(session)) if former.session == session => {}
            (Some(former), _) => {
                if let Session::Open(session) = self.session {
                    self.unused.push(session);
                }
                self.session = Session::Closed;
                self.former = Some(former);
            }
            (None, Session::Open(session)) => self.note_session(self.generation, session),
            (None, _) => {}
        }
    }

    /// Notes the session for the next tunnel, and where its slots are.
    pub(super) fn note_session(&mut self, generation: u64, session: u32) {
        let numbers: Vec<u32> = self.slots.iter().map(|slot| slot.number).collect();
        self.note(|inflight| inflight.begin(generation, session, numbers.into_iter()));
    }

    /// Leaves the session to the next tunnel, if there are notes for it.
    pub(in super::super) fn leave(&mut self) {
        self.is_left = self.inflight.is_some();
    }

    /// Makes a note for the next tunnel, if the frontend keeps notes.
    pub(super) fn note(&mut self, note: impl FnOnce(&Inflight) -> std::io::Result<()>) {
        if let Some(Err(source)) = self.inflight.as_ref().map(note) {
            self.fail(Fatal::unnoted(source));
        }
    }

    /// As [`Self::note`], about ring `ring`.
    pub(super) fn note_ring(
        &mut self,
        ring: usize,
        note: impl FnOnce(&Inflight) -> std::io::Result<()>,
    ) {
        let size = self.rings.get(ring).map_or(u16::MAX, |ring| ring.size);
        let is_covered = |inflight: &Inflight| inflight.covers(ring, size);
        if self.inflight.as_ref().is_some_and(is_covered) {
            self.note(note);
        }
    }
}
