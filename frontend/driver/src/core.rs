//! What all handles of one device share: its queues, and waiting on them.
//!
//! Any number of threads wait on a queue at once. One of them, the leader, sleeps on the daemon's notifications; the
//! others sleep on a condition variable. Whoever finds answers, leader or not, wakes those who wait for them. Locks: a queue's
//! state, and within it the memory's list of free parts; nobody holds two queues, or any lock while sleeping.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use gangplank_fuse::{Opcode, Unique};
use gangplank_vhost_user::client::{EventFd, RingAddresses, Session, Socket};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;

use super::error::{Error, Fault, Result};
use super::memory::Memory;
use super::options::WaitMode;
use super::slots::{RequestBuffers, Slots, UsedRequest};
use super::wakeup::{self, WakeReason, Wakeup};

/// How many looks at a ring go between two at the clock and the connection, when waiting busily.
const POLLS_PER_CLOCK_CHECK: u32 = 256;

/// One queue and who waits on it.
#[derive(Debug)]
pub(super) struct Queue {
    kick: EventFd,
    wakeup: Wakeup,
    state: Mutex<State>,
    /// Answers have come, the leader has left, or the device is broken.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    slots: Slots,
    /// Somebody sleeps on the daemon's notifications.
    has_leader: bool,
}

impl Queue {
    pub(super) fn new(slots: Slots, wakeup: Wakeup) -> Result<Self> {
        let kick = wakeup::new_eventfd().map_err(|source| Error::System {
            what: "making what a queue is kicked by",
            source,
        })?;
        Ok(Self {
            kick,
            wakeup,
            state: Mutex::new(State {
                slots,
                has_leader: false,
            }),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Where its ring is, and how large.
    pub(super) fn layout(&self) -> (RingAddresses, u16) {
        let state = self.lock();
        let ring = state.slots.ring();
        (ring.addresses(), ring.size())
    }

    /// What the daemon is kicked by.
    pub(super) const fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// What the daemon notifies through.
    pub(super) const fn call(&self) -> &EventFd {
        self.wakeup.call()
    }
}

/// One device.
#[derive(Debug)]
pub(super) struct Core {
    /// Closed first, so that the daemon is done with the memory before that goes.
    pub(super) connection: Mutex<Session<Socket>>,
    pub(super) daemon: PathBuf,
    pub(super) memory: Arc<Memory>,
    /// The high-priority queue, then the request queues.
    pub(super) queues: Vec<Queue>,
    pub(super) waiting: WaitMode,
    pub(super) broken: OnceLock<Fault>,
    pub(super) last_unique: AtomicU64,
}

/// Why waiting ended without what was waited for.
enum WaitError {
    /// Time is over.
    Late,
    /// The device is broken.
    Broken(Error),
}

impl Core {
    /// The next request's number. They go in twos: the odd ones are for INTERRUPT.
    pub(super) fn next_unique(&self) -> Unique {
        Unique::new(
            self.last_unique
                .fetch_add(2, Ordering::Relaxed)
                .wrapping_add(2),
        )
    }

    /// The device's end, if it has come.
    pub(super) fn broken(&self) -> Option<Error> {
        self.broken.get().map(|fault| Error::Broken {
            daemon: self.daemon.clone(),
            source: *fault,
        })
    }

    /// Requests that a queue takes at once.
    pub(super) fn depth(&self, queue: usize) -> usize {
        self.queues
            .get(queue)
            .map_or(0, |queue| queue.lock().slots.depth())
    }

    /// Sends a request on `queue`; waits for a free slot if need be. The slot.
    pub(super) fn submit(
        &self,
        number: usize,
        opcode: Opcode,
        buffers: RequestBuffers,
        limit: Duration,
    ) -> Result<u16> {
        let queue = self.queue(number)?;
        let overflow = Slots::overflow(&self.memory, &buffers)?;
        let mut buffers = Some((buffers, overflow));
        let submitted = self.wait_until(queue, limit, |slots| slots.submit(&mut buffers));
        let (slot, kick) = submitted.map_err(|error| match error {
            WaitError::Late => Error::Full {
                opcode,
                queue: number,
                limit,
            },
            WaitError::Broken(error) => error,
        })?;
        if kick {
            // A counter that is full is a kick already.
            let _ = queue.kick.write(1);
        }
        Ok(slot)
    }

    /// Waits for the answer in `slot`.
    pub(super) fn answer(
        &self,
        number: usize,
        slot: u16,
        opcode: Opcode,
        limit: Duration,
    ) -> Result<UsedRequest> {
        let queue = self.queue(number)?;
        let answer = self.wait_until(queue, limit, |slots| slots.take_answer(slot));
        answer.map_err(|error| match error {
            WaitError::Late => Error::Late { opcode, limit },
            WaitError::Broken(error) => error,
        })
    }

    /// Whether the answer in `slot` is there.
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

    /// Nobody waits for `slot` any longer.
    pub(super) fn abandon(&self, number: usize, slot: u16) {
        if let Ok(queue) = self.queue(number) {
            queue.lock().slots.abandon(slot);
        }
    }

    fn queue(&self, number: usize) -> Result<&Queue> {
        self.queues.get(number).ok_or(Error::NoQueue {
            wanted: number,
            available: self.queues.len().saturating_sub(1),
        })
    }

    /// Takes off the ring what the device has used, and wakes whoever waits for it.
    fn collect(&self, queue: &Queue, state: &mut State) -> std::result::Result<(), Fault> {
        if state.slots.collect()? != 0 {
            queue.changed.notify_all();
            if state.has_leader {
                // The leader sleeps for a notification that has lost its purpose.
                queue.wakeup.wake();
            }
        }
        Ok(())
    }

    /// Waits until `ready` finds what it looks for.
    fn wait_until<R>(
        &self,
        queue: &Queue,
        limit: Duration,
        mut ready: impl FnMut(&mut Slots) -> Option<R>,
    ) -> std::result::Result<R, WaitError> {
        let deadline = Instant::now().checked_add(limit);
        let mut polls = 0_u32;
        let mut state = queue.lock();
        loop {
            if let Err(fault) = self.collect(queue, &mut state) {
                drop(state);
                return Err(WaitError::Broken(self.declare_broken(fault)));
            }
            // What has been answered counts, even if the daemon has gone since.
            if let Some(found) = ready(&mut state.slots) {
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
            } else if state.has_leader {
                queue.changed.wait_for(&mut state, left);
            } else if !state.slots.ask_for_notice() {
                state.has_leader = true;
                drop(state);
                self.sleep(queue, left);
                state = queue.lock();
                state.has_leader = false;
                state.slots.decline_notice();
                // Somebody else has to lead if this one leaves now.
                queue.changed.notify_all();
            }
        }
    }

    /// Sleeps until the daemon notifies, somebody rings, the daemon goes, or `limit` is over. No queue may be locked.
    fn sleep(&self, queue: &Queue, limit: Duration) {
        let fault = match queue.wakeup.sleep(limit) {
            Ok(WakeReason::Woken) => return,
            Ok(WakeReason::HungUp) => Fault::HungUp,
            Err(error) => Fault::Wait(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        };
        self.declare_broken(fault);
    }

    /// From now on every call fails; all who wait are woken. The first fault counts. No queue may be locked.
    pub(super) fn declare_broken(&self, fault: Fault) -> Error {
        let fault = *self.broken.get_or_init(|| fault);
        for queue in &self.queues {
            queue.wakeup.wake();
            // Whoever has found the device whole and is about to sleep holds the lock until then.
            drop(queue.lock());
            queue.changed.notify_all();
        }
        Error::Broken {
            daemon: self.daemon.clone(),
            source: fault,
        }
    }
}

/// What is left until `deadline`; `None` if it is over. Without a deadline there is always a day.
fn left_of(deadline: Option<Instant>) -> Option<Duration> {
    const LONG: Duration = Duration::from_secs(24 * 60 * 60);
    let Some(deadline) = deadline else {
        return Some(LONG);
    };
    let left = deadline.checked_duration_since(Instant::now())?;
    (!left.is_zero()).then(|| left.min(LONG))
}
