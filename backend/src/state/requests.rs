//! The requests of a guest that its device has taken off the rings and not yet returned.
//!
//! Each ring has one slot for each head that a chain can have, and the number of chains taken so
//! far, whose lower 16 bits are the next index in the available ring (virtio 1.2, 2.7.6).
//!
//! ```text
//!        take            start           done            publish            free
//! FREE ───────> TAKEN ─────────> RUNNING ─────> DONE ────────────> PUBLISHING ────> FREE
//!                 ^                │ │
//!                 └───── park ─────┘ └ a death ─> INTERRUPTED ── start ──> RUNNING
//! ```
//!
//! A worker can be killed between any two stores, so their order is part of the format:
//!
//! - Taking: the content of each slot, its state, and after all slots of the batch the ring's
//!   number of chains. A slot that is `TAKEN` with a position at or behind that number was not
//!   taken: it becomes free, and the chain is taken again.
//! - Running: `RUNNING` before the handler is called. What the handler notes of itself (opcode,
//!   time, auxiliary number) was cleared by taking, so it belongs to this request. A request that
//!   only waits (for a lock, or for a thread) is `TAKEN`: it has done nothing yet that may not be
//!   done again.
//! - Completing: the reply in guest memory, then `DONE` with the reply's length. To publish it, the
//!   index that it gets in the used ring, then the used ring's element, then the used ring's index,
//!   then `FREE`. One request of a ring at a time is `PUBLISHING`. If the used ring's index is the
//!   noted one, the request has not been published; if not, it has.
//!
//! So after a death, `DONE` is published and not run, `TAKEN` is run, and what was `RUNNING` may
//! have happened in part, as a whole, or not at all: the handler decides. All stores have release
//! ordering, which keeps the compiler to their order; a signal that ends a process comes between
//! two instructions, so that the CPU's order does not matter.

mod current;
mod word;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

pub use self::current::{Current, note_auxiliary, note_operation};
use self::word::{State, Word};
use super::arena::{Arena, Part};
use crate::crash_hook::{self, Point};
use crate::sys::shared_memory::shared_struct;

shared_struct! {
    /// One ring.
    #[derive(Debug, Default)]
    pub struct RingRecord {
        /// Chains that were ever taken. The lower 16 bits are the next index in the available ring.
        pub taken: AtomicU64,
        /// 1 once a worker has found out which requests are in flight: from then on, the slots say
        /// so, and not the frontend's memory ([`super::inflight`]). 2 from the loss of the
        /// connection on, until the next one starts the ring.
        begun: AtomicU64,
        reserved: [AtomicU64; 6],
    }
}

shared_struct! {
    /// One request.
    #[derive(Debug, Default)]
    pub struct RequestSlot {
        /// State, blame, index in the used ring and reply length in one word (`Word`).
        pub state: AtomicU64,
        /// Number of chains of the ring that were taken before this one.
        pub position: AtomicU64,
        /// When the handler began to change something, in nanoseconds since the epoch
        /// (`CLOCK_REALTIME_COARSE`, as files' times); 0 if it did not.
        pub time: AtomicU64,
        /// What the handler notes of the operation, such as the number that it is about to give
        /// out.
        pub auxiliary: AtomicU64,
        /// The operation, as the handler numbers it; 0 if the handler has not got so far.
        pub opcode: AtomicU32,
        reserved: AtomicU32,
        reserved_words: [AtomicU64; 3],
    }
}

impl RequestSlot {
    /// Whether the request was taken off the ring and not yet returned, and whether a thread is
    /// running it.
    pub fn is_in_flight_and_running(&self) -> (bool, bool) {
        let word = Word::from_bits(self.state.load(Ordering::Relaxed));
        (word.state != State::Free, word.state == State::Running)
    }
}

const _: () = assert!(size_of::<RequestSlot>() == 64);
const _: () = assert!(size_of::<RingRecord>() == 64);

/// The value of `begun` while the ring is [`RingRequests::is_carried_over`].
const CARRIED_OVER: u64 = 2;

/// How much a death counts against the requests that were running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The daemon itself stopped the worker.
    Stopped = 0,
    /// The worker failed. At the second such death the request is answered with an error.
    Failed = 3,
    /// Something else may have killed the worker: SIGKILL comes from the kernel when memory runs
    /// out, and from a person. At the sixth such death the request is answered with an error.
    Killed = 1,
}

/// The blame from which on a request is not run again.
const POISONED: u8 = 6;

/// What is to be done with a request that a dead worker left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// It was not run: run it.
    Taken,
    /// Its reply of this many bytes is complete: return it.
    Done(u32),
    /// It may have been carried out.
    Interrupted(Interrupted),
}

/// What is known of a request that was running when the worker died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupted {
    /// The operation, as the handler numbers it; 0 if the handler had not got so far.
    pub opcode: u32,
    /// When the operation began, since the epoch; zero if it only reads, or had not begun.
    pub time: Duration,
    /// What [`note_auxiliary`] noted; 0 if nothing.
    pub auxiliary: u64,
    /// The request was running at so many deaths that it is not run again.
    pub is_poisoned: bool,
}

/// The requests of one ring.
#[derive(Debug)]
pub struct RingRequests {
    index: u16,
    record: Part<RingRecord>,
    slots: Part<RequestSlot>,
}

/// A chain cannot be taken: the driver offers one that it has not got back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Number of chains of the batch before it, which were taken.
    pub taken: usize,
}

impl RingRequests {
    /// The ring's number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The requests of ring number `index`; `None` if the arena has no room for that ring.
    pub fn new(arena: &Arc<Arena>, index: usize) -> Option<Arc<Self>> {
        Some(Arc::new(Self {
            index: u16::try_from(index).ok()?,
            record: arena.ring(index)?,
            slots: arena.request_slots(index)?,
        }))
    }

    /// The next index in the available ring.
    pub fn next_available(&self) -> u16 {
        low(self.taken())
    }

    /// Forgets all requests, and continues at the index `next` of the available ring: the frontend
    /// sets the ring up.
    pub fn set_up(&self, next: u16) {
        self.clear();
        self.move_to(next);
    }

    /// Continues at the index `next` of the available ring.
    pub fn move_to(&self, next: u16) {
        // Positions go on increasing.
        let taken = (self.taken() | 0xffff).wrapping_add(1 + u64::from(next));
        store(&self.record[0].taken, taken);
    }

    /// Forgets all requests.
    pub fn clear(&self) {
        for slot in &*self.slots {
            if slot.state.load(Ordering::Relaxed) != 0 {
                store(&slot.state, 0);
            }
        }
    }

    /// Whether the slots say which requests are in flight.
    pub fn has_begun(&self) -> bool {
        self.record[0].begun.load(Ordering::Acquire) != 0
    }

    /// From now on the slots say which requests are in flight.
    pub fn begin(&self) {
        store(&self.record[0].begun, 1);
    }

    /// The connection on which the ring ran is lost, and the ring goes on on another one: what that
    /// says of the ring's position does not count, since it may be that of the driver.
    pub fn carry_over(&self) {
        if self.has_begun() {
            store(&self.record[0].begun, CARRIED_OVER);
        }
    }

    /// Whether the ring ran on a connection that was lost, and has not been started since.
    pub fn is_carried_over(&self) -> bool {
        self.record[0].begun.load(Ordering::Acquire) == CARRIED_OVER
    }

    /// Whether a thread is serving one of the requests.
    pub fn is_running(&self) -> bool {
        let mut slots = self.slots.iter();
        slots.any(|slot| slot.is_in_flight_and_running().1)
    }

    /// The chains of `heads` were taken by another daemon, oldest first, and no others. The next
    /// one has the index `next` of the available ring.
    pub fn set_taken(&self, heads: &[u16], next: u16) {
        self.clear();
        // Positions go on increasing, with room for a whole ring before the next one.
        let taken = (self.taken() | 0xffff).wrapping_add(0x1_0001 + u64::from(next));
        for (position, head) in (0..taken).rev().zip(heads.iter().rev()) {
            if let Some(slot) = self.slot(*head) {
                slot.take(position);
            }
        }
        store(&self.record[0].taken, taken);
    }

    /// Takes a batch of chains off the available ring: those of `heads`, from the ring's next index
    /// on.
    ///
    /// A head outside the ring is counted and has no slot; its chain is malformed.
    ///
    /// # Errors
    /// A chain is in flight already. Those before it are taken.
    pub fn take(&self, heads: impl IntoIterator<Item = u16>) -> Result<(), InFlight> {
        let mut position = self.taken();
        let first = position;
        let mut result = Ok(());
        for head in heads {
            if let Some(slot) = self.slot(head) {
                if slot.state.load(Ordering::Relaxed) != 0 {
                    let taken = usize::try_from(position.wrapping_sub(first));
                    let taken = taken.unwrap_or(usize::MAX);
                    result = Err(InFlight { taken });
                    break;
                }
                slot.take(position);
            }
            position = position.wrapping_add(1);
        }
        store(&self.record[0].taken, position);
        if position != first {
            crash_hook::pass(Point::Taken, || 0);
        }
        result
    }

    /// The handler is about to be called for the request at `head`.
    pub fn start(&self, head: u16) {
        self.change(head, |word| Word::new(State::Running, word.blame));
    }

    /// The request at `head` waits, and has done nothing that may not be done again.
    pub fn park(&self, head: u16) {
        self.change(head, |_| Word::new(State::Taken, 0));
    }

    /// The reply to the request at `head` is complete in guest memory.
    pub fn done(&self, head: u16, reply_len: u32) {
        self.set_done(head, reply_len);
        self.pass(Point::Done, head);
    }

    /// The reply is about to be returned at index `used` of the used ring.
    pub fn publish(&self, head: u16, used: u16, reply_len: u32) {
        self.change(head, |_| Word {
            used,
            reply_len,
            ..Word::new(State::Publishing, 0)
        });
        self.pass(Point::Publishing, head);
    }

    /// The chain was returned.
    pub fn free(&self, head: u16) {
        self.pass(Point::Published, head);
        self.set_free(head);
        self.pass(Point::Freed, head);
    }

    /// The requests that a dead worker left, oldest first, each with its head. `used` is the index
    /// of the used ring in guest memory.
    ///
    /// `blame` says what the worker died of. Calling it again, after another death, counts only
    /// what ran since.
    pub fn recover(&self, used: u16, blame: Blame) -> Vec<(u16, Pending)> {
        let taken = self.taken();
        let mut found = Vec::new();
        for (head, slot) in (0..=u16::MAX).zip(&*self.slots) {
            let word = Word::from_bits(slot.state.load(Ordering::Acquire));
            let position = slot.position.load(Ordering::Relaxed);
            let pending = match word.state {
                State::Free => continue,
                State::Taken if position >= taken => {
                    self.set_free(head);
                    continue;
                }
                State::Taken => Pending::Taken,
                State::Running => {
                    let blame = word.blame.saturating_add(blame as u8);
                    self.change(head, |_| Word::new(State::Interrupted, blame));
                    Pending::Interrupted(slot.interrupted(blame))
                }
                State::Interrupted => Pending::Interrupted(slot.interrupted(word.blame)),
                State::Done => Pending::Done(word.reply_len),
                State::Publishing if word.used == used => {
                    // Another request may get that index now.
                    self.set_done(head, word.reply_len);
                    Pending::Done(word.reply_len)
                }
                State::Publishing => {
                    self.set_free(head);
                    continue;
                }
            };
            found.push((position, head, pending));
        }
        found.sort_unstable_by_key(|(position, ..)| *position);
        let found = found.into_iter();
        found.map(|(_, head, pending)| (head, pending)).collect()
    }

    fn set_done(&self, head: u16, reply_len: u32) {
        self.change(head, |_| Word {
            reply_len,
            ..Word::new(State::Done, 0)
        });
    }

    fn set_free(&self, head: u16) {
        self.change(head, |_| Word::new(State::Free, 0));
    }

    fn pass(&self, point: Point, head: u16) {
        crash_hook::pass(point, || {
            let slot = self.slot(head);
            slot.map_or(0, |slot| slot.opcode.load(Ordering::Relaxed))
        });
    }

    fn taken(&self) -> u64 {
        self.record[0].taken.load(Ordering::Relaxed)
    }

    fn slot(&self, head: u16) -> Option<&RequestSlot> {
        self.slots.get(usize::from(head))
    }

    fn change(&self, head: u16, change: impl FnOnce(Word) -> Word) {
        if let Some(slot) = self.slot(head) {
            let before = Word::from_bits(slot.state.load(Ordering::Relaxed));
            store(&slot.state, change(before).to_bits());
        }
    }
}

impl RequestSlot {
    /// A chain was taken at this position.
    fn take(&self, position: u64) {
        for note in [&self.time, &self.auxiliary] {
            if note.load(Ordering::Relaxed) != 0 {
                store(note, 0);
            }
        }
        if self.opcode.load(Ordering::Relaxed) != 0 {
            self.opcode.store(0, Ordering::Release);
        }
        store(&self.position, position);
        store(&self.state, Word::new(State::Taken, 0).to_bits());
    }

    fn interrupted(&self, blame: u8) -> Interrupted {
        Interrupted {
            opcode: self.opcode.load(Ordering::Relaxed),
            time: Duration::from_nanos(self.time.load(Ordering::Relaxed)),
            auxiliary: self.auxiliary.load(Ordering::Relaxed),
            is_poisoned: blame >= POISONED,
        }
    }
}

/// The lower 16 bits.
fn low(number: u64) -> u16 {
    u16::try_from(number & 0xffff).unwrap_or_default()
}

/// Stores a value behind all stores before it.
fn store(target: &AtomicU64, value: u64) {
    #[cfg(test)]
    tests::kill_point();
    target.store(value, Ordering::Release);
}

#[cfg(test)]
mod tests;
