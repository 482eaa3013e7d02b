//! What all handles of one device share: the queues, and waiting on them.
//!
//! Any number of threads wait on a queue at once. One of them, the leader, polls the ring or sleeps
//! on the daemon's notifications; the others sleep on a condition variable. The thread that finds
//! replies, leader or not, wakes the threads that wait for them. Lock order: a queue's state, then
//! the memory's list of free ranges. No thread holds two queues, or any lock while it sleeps.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_fuse::{Opcode, Unique};
use gangplank_service::busy_poll::BusyPoll;
use gangplank_vhost_user::client::{Backend, EventFd, RingAddresses, Socket};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;

use super::error::{Error, Fault, Result};
use super::memory::Memory;
use super::options::WaitMode;
use super::slots::{RequestBuffers, Slots, UsedRequest};
use super::wakeup::{self, WakeReason, Wakeup};

/// While a thread busy-polls: looks at the ring between two looks at the clock and the connection.
const POLLS_PER_CLOCK_CHECK: u32 = 256;

/// One queue and the threads that wait on it.
#[derive(Debug)]
pub(super) struct Queue {
    kick: EventFd,
    wakeup: Wakeup,
    state: Mutex<State>,
    /// Replies have come, a slot is free, the leader has left, or the device is broken.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    slots: Slots,
    leader: Leader,
    /// Whether a leader polls before it sleeps; `None` if none does, and while one polls.
    busy_poll: Option<BusyPoll>,
}

/// The thread that finds the replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leader {
    /// There is none.
    Absent,
    /// It polls the ring.
    Polls,
    /// It sleeps on the daemon's notifications.
    Sleeps,
}

impl Queue {
    /// Wakes the threads that wait for replies or for a slot.
    fn announce(&self, state: &State) {
        self.changed.notify_all();
        if state.leader == Leader::Sleeps {
            // It sleeps until a notification that this thread has made needless.
            self.wakeup.wake();
        }
    }

    pub(super) fn new(slots: Slots, wakeup: Wakeup, waiting: WaitMode) -> Result<Self> {
        let kick = wakeup::new_eventfd().map_err(|source| Error::System {
            what: "make the eventfd that kicks a queue",
            source,
        })?;
        Ok(Self {
            kick,
            wakeup,
            state: Mutex::new(State {
                slots,
                leader: Leader::Absent,
                busy_poll: match waiting {
                    WaitMode::PollFirst(limit) => Some(BusyPoll::new(limit)),
                    WaitMode::Sleep | WaitMode::BusyPoll => None,
                },
            }),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The leader leaves. Another thread must become it.
    fn leave(&self, state: &mut State) {
        state.leader = Leader::Absent;
        self.changed.notify_all();
    }

    /// The addresses and the size of its ring.
    pub(super) fn layout(&self) -> (RingAddresses, u16) {
        let state = self.lock();
        let ring = state.slots.ring();
        (ring.addresses(), ring.size())
    }

    /// The eventfd by which the driver kicks the daemon.
    pub(super) const fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The eventfd by which the daemon notifies the driver.
    pub(super) const fn call(&self) -> &EventFd {
        self.wakeup.call()
    }
}

/// One device.
#[derive(Debug)]
pub(super) struct Core {
    /// Closed first, so that the daemon has finished with the memory before the memory is unmapped.
    pub(super) connection: Mutex<Backend<Socket>>,
    pub(super) daemon: PathBuf,
    pub(super) memory: Arc<Memory>,
    /// The high-priority queue, then the request queues.
    pub(super) queues: Vec<Queue>,
    pub(super) waiting: WaitMode,
    pub(super) broken: OnceLock<Fault>,
    pub(super) last_unique: AtomicU64,
}

/// Why a wait ended without a result.
enum WaitError {
    /// The limit has passed.
    Late,
    /// The device is broken.
    Broken(Error),
}

impl Core {
    /// The next request's number. The numbers are even: the odd ones are for INTERRUPT.
    pub(super) fn next_unique(&self) -> Unique {
        Unique::new(
            self.last_unique
                .fetch_add(2, Ordering::Relaxed)
                .wrapping_add(2),
        )
    }

    /// Why the device is broken, if it is.
    pub(super) fn broken(&self) -> Option<Error> {
        self.broken.get().map(|fault| Error::Broken {
            daemon: self.daemon.clone(),
            source: *fault,
        })
    }

    /// Requests that a queue can hold at once.
    pub(super) fn depth(&self, queue: usize) -> usize {
        self.queues
            .get(queue)
            .map_or(0, |queue| queue.lock().slots.depth())
    }

    /// Sends a request on `queue` and returns its slot. Waits for a free slot if there is none.
    pub(super) fn submit(
        &self,
        number: usize,
        opcode: Opcode,
        buffers: RequestBuffers,
        limit: Duration,
    ) -> Result<u16> {
        let submitted = self.try_submit(number, buffers, limit)?;
        submitted.ok_or(Error::Full {
            opcode,
            queue: number,
            limit,
        })
    }

    /// As [`Self::submit`]; None if no slot has become free in time.
    pub(super) fn try_submit(
        &self,
        number: usize,
        buffers: RequestBuffers,
        limit: Duration,
    ) -> Result<Option<u16>> {
        let queue = self.queue(number)?;
        let overflow = Slots::overflow(&self.memory, &buffers)?;
        let mut buffers = Some((buffers, overflow));
        let submitted = self.wait_until(queue, limit, |slots| slots.submit(&mut buffers));
        let (slot, kick) = match submitted {
            Ok(submitted) => submitted,
            Err(WaitError::Late) => return Ok(None),
            Err(WaitError::Broken(error)) => return Err(error),
        };
        if kick {
            // A full counter is a pending kick already.
            let _ = queue.kick.write(1);
        }
        Ok(Some(slot))
    }

    /// Waits for the reply in `slot`.
    pub(super) fn answer(
        &self,
        number: usize,
        slot: u16,
        opcode: Opcode,
        limit: Duration,
    ) -> Result<UsedRequest> {
        let answer = self.try_answer(number, slot, limit)?;
        answer.ok_or(Error::Late { opcode, limit })
    }

    /// As [`Self::answer`]; None if the reply has not come in time.
    pub(super) fn try_answer(
        &self,
        number: usize,
        slot: u16,
        limit: Duration,
    ) -> Result<Option<UsedRequest>> {
        let queue = self.queue(number)?;
        let mut is_freed = false;
        let taken = self.wait_until(queue, limit, |slots| {
            let answer = slots.take_answer(slot)?;
            is_freed = slots.take_freed();
            Some(answer)
        });
        if is_freed {
            queue.announce(&queue.lock());
        }
        match taken {
            Ok(answer) => Ok(Some(answer)),
            Err(WaitError::Late) => Ok(None),
            Err(WaitError::Broken(error)) => Err(error),
        }
    }

    /// Waits until the daemon has finished with every request on a queue, at most `limit`.
    pub(super) fn wait_until_idle(&self, number: usize, limit: Duration) -> Result<()> {
        let queue = self.queue(number)?;
        let idle = |slots: &mut Slots| (slots.ring().in_flight() == 0).then_some(());
        match self.wait_until(queue, limit, idle) {
            // Whether it still works is not this function's question.
            Ok(()) | Err(WaitError::Late) => Ok(()),
            Err(WaitError::Broken(error)) => Err(error),
        }
    }

    /// Whether the reply in `slot` has come.
    pub(super) fn is_answered(&self, number: usize, slot: u16) -> Result<bool> {
        let queue = self.queue(number)?;
        let mut state = queue.lock();
        let collected = self.collect(queue, &mut state);
        let answered = state.slots.is_answered(slot);
        drop(state);
        if let Err(fault) = collected {
            return Err(self.declare_broken(fault));
        }
        match self.broken() {
            Some(error) if !answered => Err(error),
            _ => Ok(answered),
        }
    }

    /// Gives up the reply in `slot`.
    pub(super) fn abandon(&self, number: usize, slot: u16) {
        if let Ok(queue) = self.queue(number) {
            let mut state = queue.lock();
            state.slots.abandon(slot);
            if state.slots.take_freed() {
                queue.announce(&state);
            }
        }
    }

    fn queue(&self, number: usize) -> Result<&Queue> {
        self.queues.get(number).ok_or(Error::NoQueue {
            wanted: number,
            available: self.queues.len().saturating_sub(1),
        })
    }

    /// Takes the used requests off the ring, and wakes the threads that wait for them.
    fn collect(&self, queue: &Queue, state: &mut State) -> std::result::Result<(), Fault> {
        if state.slots.collect()? != 0 {
            queue.announce(state);
        }
        Ok(())
    }

    /// Waits until `ready` returns a value.
    fn wait_until<R>(
        &self,
        queue: &Queue,
        limit: Duration,
        mut ready: impl FnMut(&mut Slots) -> Option<R>,
    ) -> std::result::Result<R, WaitError> {
        let begun = Instant::now();
        let deadline = begun.checked_add(limit);
        let mut polls = 0_u32;
        let (mut has_polled, mut has_slept) = (false, false);
        let mut state = queue.lock();
        loop {
            if let Err(fault) = self.collect(queue, &mut state) {
                drop(state);
                return Err(WaitError::Broken(self.declare_broken(fault)));
            }
            // A reply that has come counts, even if the daemon has closed the connection since.
            if let Some(found) = ready(&mut state.slots) {
                if let Some(busy_poll) = state.busy_poll.as_mut().filter(|_| has_slept) {
                    busy_poll.record_sleep(begun.elapsed());
                }
                return Ok(found);
            }
            if let Some(error) = self.broken() {
                return Err(WaitError::Broken(error));
            }
            polls = polls.wrapping_add(1);
            let busy = matches!(self.waiting, WaitMode::BusyPoll);
            if busy && !polls.is_multiple_of(POLLS_PER_CLOCK_CHECK) {
                drop(state);
                std::hint::spin_loop();
                state = queue.lock();
                continue;
            }
            let left = left_of(deadline).ok_or(WaitError::Late)?;
            if busy {
                drop(state);
                thread::yield_now();
                self.sleep(queue, Duration::ZERO);
                state = queue.lock();
            } else if state.leader != Leader::Absent {
                queue.changed.wait_for(&mut state, left);
            } else if !has_polled
                && let Some(busy_poll) = state.busy_poll.take_if(|one| one.is_likely())
            {
                has_polled = true;
                state.leader = Leader::Polls;
                drop(state);
                let (busy_poll, polled) = self.poll(queue, busy_poll, begun, &mut ready);
                state = queue.lock();
                state.busy_poll = Some(busy_poll);
                queue.leave(&mut state);
                match polled {
                    Ok(Some(found)) => return Ok(found),
                    Ok(None) => {}
                    Err(fault) => {
                        drop(state);
                        return Err(WaitError::Broken(self.declare_broken(fault)));
                    }
                }
            } else if !state.slots.ask_for_notice() {
                has_slept = true;
                state.leader = Leader::Sleeps;
                drop(state);
                self.sleep(queue, left);
                state = queue.lock();
                state.slots.decline_notice();
                queue.leave(&mut state);
            }
        }
    }

    /// Polls the ring until `ready` returns a value, the device is broken, or polling is not likely
    /// to succeed any more. The caller is the leader, and does not hold the queue's lock.
    fn poll<R>(
        &self,
        queue: &Queue,
        mut busy_poll: BusyPoll,
        begun: Instant,
        ready: &mut impl FnMut(&mut Slots) -> Option<R>,
    ) -> (BusyPoll, std::result::Result<Option<R>, Fault>) {
        let mut polled = Ok(None);
        let has_come = || {
            let mut state = queue.lock();
            polled = self
                .collect(queue, &mut state)
                .map(|()| ready(&mut state.slots));
            !matches!(polled, Ok(None)) || self.broken.get().is_some()
        };
        busy_poll.poll(|| begun.elapsed(), has_come);
        (busy_poll, polled)
    }

    /// Sleeps until the daemon notifies or hangs up, a thread calls [`Wakeup::wake`], or `limit`
    /// has passed. The caller must not hold a queue's lock.
    fn sleep(&self, queue: &Queue, limit: Duration) {
        let fault = match queue.wakeup.sleep(limit) {
            Ok(WakeReason::Woken) => return,
            Ok(WakeReason::HungUp) => Fault::HungUp,
            Err(error) => Fault::Wait(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        };
        self.declare_broken(fault);
    }

    /// Fails every call from now on and wakes all waiting threads. The first fault counts. The
    /// caller must not hold a queue's lock.
    pub(super) fn declare_broken(&self, fault: Fault) -> Error {
        let fault = *self.broken.get_or_init(|| fault);
        for queue in &self.queues {
            queue.wakeup.wake();
            // A thread that has found the device working and is about to sleep holds the lock until
            // it sleeps.
            drop(queue.lock());
            queue.changed.notify_all();
        }
        Error::Broken {
            daemon: self.daemon.clone(),
            source: fault,
        }
    }
}

/// The time left until `deadline`; `None` if it has passed. A day if there is no deadline.
fn left_of(deadline: Option<Instant>) -> Option<Duration> {
    const LONG: Duration = Duration::from_secs(24 * 60 * 60);
    let Some(deadline) = deadline else {
        return Some(LONG);
    };
    let left = deadline.checked_duration_since(Instant::now())?;
    (!left.is_zero()).then(|| left.min(LONG))
}
