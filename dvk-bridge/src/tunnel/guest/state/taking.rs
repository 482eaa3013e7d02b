//! Takes requests off the guest's rings.

use std::sync::Arc;
use std::time::Instant;

use gangplank_rings::{Chain, QueueError};
use gangplank_service::{error_chain, rate_limited};
use gangplank_vhost_user::feature;

use super::super::inflight::Progress;
use super::super::job::{Class, Job, Place, Taken};
use super::{FIRST_PAUSE, Fatal, Session, State};
use crate::tunnel::wire::{MAX_BYTES, MAX_REPLY};

/// Chains that are taken off a ring at once.
const BATCH: usize = 128;

/// Pieces of a chain at most: twice the pages of the longest request or reply, and some for
/// headers. A chain of more costs memory, and no driver makes it.
pub(super) const MAX_PIECES: usize = 600;

impl State {
    /// Takes the requests off all rings.
    pub(in super::super) fn take_requests(&mut self) -> Taken {
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
                self.break_ring(index, &error);
            }
            if self.fatal.is_some() {
                return;
            }
        }
    }

    /// Ring `index` cannot be used because of `error`: it is stopped.
    fn break_ring(&mut self, index: usize, error: &QueueError) {
        if matches!(error, QueueError::Memory(_)) {
            return self.fail(Fatal::Memory);
        }
        rate_limited!(error, "ring {index} is stopped: {}", error_chain(error));
        if let Some(ring) = self.rings.get_mut(index) {
            ring.broken = true;
            ring.signal_error();
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
            self.note_ring(index, |inflight| inflight.take(index, head));
            self.add(index, head, chain, None);
        }
        Ok(())
    }

    /// Takes over what the tunnel before has left in flight in ring `index`, which is about to
    /// start.
    pub(in super::super) fn take_over(&mut self, index: usize) {
        if let Err(error) = self.try_take_over(index) {
            self.break_ring(index, &error);
        }
    }

    fn try_take_over(&mut self, index: usize) -> Result<(), QueueError> {
        let event_idx = self.features.unwrap_or(0) & feature::EVENT_IDX != 0;
        let (Some(inflight), Some(memory)) = (&self.inflight, self.memory.clone()) else {
            return Ok(());
        };
        let Some(ring) = self.rings.get_mut(index) else {
            return Ok(());
        };
        // The tunnel before may have ended before it signalled what it had given back. The driver
        // asks for no other signal until it has seen that.
        ring.signal_call();
        if !inflight.covers(index, ring.size) {
            return Ok(());
        }
        let Some(queue) = ring.queue(&memory, event_idx) else {
            return Ok(());
        };
        let used = queue.used_index()?;
        let found = match inflight.attach(index, queue.size(), used) {
            Ok(Some(found)) => found,
            Ok(None) => {
                // Notes about another ring in its place are gone, and with them their slots.
                self.restore_used();
                return Ok(());
            }
            Err(source) => {
                self.fail(Fatal::unnoted(source));
                return Ok(());
            }
        };
        let count = u16::try_from(found.len()).unwrap_or(u16::MAX);
        let session = match inflight.former() {
            Ok(former) => former.map(|former| former.session),
            Err(_) => None,
        };
        let chains = found.into_iter().map(|(head, progress)| {
            let chain = queue.chain(head)?;
            match chain.pieces() <= MAX_PIECES {
                true => Ok((head, chain, progress)),
                false => Err(QueueError::Chain),
            }
        });
        let chains = chains.collect::<Result<Vec<_>, _>>()?;
        // Each chain that was taken is in the used ring or in flight. The frontend knows only the
        // used index, which may have grown since it looked.
        ring.base = used.wrapping_add(count);
        // The notes about the last head may have changed.
        self.restore_used();
        for (head, chain, progress) in chains {
            match (progress, session) {
                (Progress::Sent(slot, number), Some(session)) => {
                    let place = Place {
                        session,
                        slot,
                        number,
                    };
                    self.add(index, head, chain, Some(place));
                }
                (Progress::Lost, _) => {
                    if let Some(job) = self.job(index, head, chain, None) {
                        self.refuse(&job);
                    }
                }
                (Progress::Sent(..) | Progress::Taken, _) => self.add(index, head, chain, None),
            }
        }
        Ok(())
    }

    /// Adds a chain, which the tunnel before has sent in `place` if it did.
    fn add(&mut self, ring: usize, head: u16, chain: Chain, place: Option<Place>) {
        let Some(job) = self.job(ring, head, chain, place) else {
            return;
        };
        match self.session {
            Session::Lost => self.refuse_or_open(job),
            Session::Closed | Session::Open(_) => self.waiting.push(job),
        }
    }

    /// The request of a chain, which counts as in flight from now on. `None` if its lengths are
    /// fatal.
    fn job(&mut self, ring: usize, head: u16, chain: Chain, place: Option<Place>) -> Option<Job> {
        let (readable, writable) = (chain.readable_len(), chain.writable_len());
        let within = |len: u64, most| u32::try_from(len).ok().filter(|len| *len <= most);
        let lengths = within(readable, MAX_BYTES)
            .filter(|readable| *readable > 0)
            .zip(within(writable, MAX_REPLY));
        let Some((readable, writable)) = lengths else {
            self.fail(Fatal::Lengths { readable, writable });
            return None;
        };
        let now = Instant::now();
        if let Some(in_flight) = self.in_flight.get_mut(ring) {
            *in_flight += 1;
        }
        Some(Job {
            ring,
            head,
            chain: Arc::new(chain),
            readable,
            writable,
            place,
            deadline: now + self.limit,
            due: now,
            pause: FIRST_PAUSE,
            is_in_doubt: place.is_some(),
        })
    }
}
