//! The work that other threads queue for an endpoint's thread, and how they wake it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::driver::Driver;
use super::queued_call::QueuedCall;
use crate::abi::{Code, Command, DcId, Endpoint, Header};
use crate::carrier::engine::{NotConnected, PeerTransport};

/// Commands and calls that can wait. An endpoint has one exchange at a time, besides notifications.
const MAX_WORK: usize = 1024;

/// Time limit of a receive that a notification can end. If a wake-up were ever lost, work would
/// wait this long at most.
const RECV_TIMEOUT: Duration = Duration::from_secs(1);

/// Time limit of a receive that no notification ends. Work waits this long at most.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Work for the thread.
pub(super) enum Work {
    /// A command of the engine and its payload.
    Command(Header, Vec<u8>),
    /// A sendrec call.
    QueuedCall(Arc<QueuedCall>),
}

/// The next step of the thread.
pub(super) enum Task {
    /// Do this work.
    Work(Work),
    /// Receive with this time limit.
    Receive(Duration),
    /// Unbind the endpoint and stop.
    Stop,
}

struct State {
    work: VecDeque<Work>,
    /// The thread is in a receive, or about to enter it.
    receives: bool,
    /// The thread was woken since.
    woken: bool,
    /// Notifications end a receive.
    wakeable: bool,
    stopping: bool,
    ended: bool,
}

/// The queue of one endpoint's thread.
pub(super) struct WorkQueue {
    driver: Arc<dyn Driver>,
    dc: DcId,
    endpoint: Endpoint,
    state: Mutex<State>,
    changed: Condvar,
}

impl WorkQueue {
    pub(super) fn new(driver: Arc<dyn Driver>, dc: DcId, endpoint: Endpoint) -> Self {
        Self {
            driver,
            dc,
            endpoint,
            state: Mutex::new(State {
                work: VecDeque::new(),
                receives: false,
                woken: false,
                wakeable: false,
                stopping: false,
                ended: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Queues work. Never waits.
    pub(super) fn put(&self, work: Work) -> Result<(), NotConnected> {
        let mut state = self.state.lock();
        if state.stopping || state.ended || state.work.len() >= MAX_WORK {
            return Err(NotConnected);
        }
        state.work.push_back(work);
        self.wake(&mut state);
        Ok(())
    }

    /// Tells the thread to stop, whatever is still queued.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        self.wake(&mut state);
    }

    /// Waits up to `limit` until the thread has stopped. Returns whether it has.
    pub(super) fn wait_for_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock();
        while !state.ended {
            let late = self.changed.wait_until(&mut state, deadline).timed_out();
            if late {
                return state.ended;
            }
        }
        true
    }

    /// Ends the thread's receive. The notification waits if the thread has not entered the receive
    /// yet, so none is lost.
    fn wake(&self, state: &mut State) {
        if !state.receives || state.woken || !state.wakeable {
            return;
        }
        match self.driver.wake(self.dc, self.endpoint) {
            // The notification is pending already.
            Ok(_) | Err(Code::EDVSOVERRUN) => state.woken = true,
            Err(code) => {
                log::warn!(
                    "endpoint {}: the kernel no longer interrupts receives, so each is short: \
                     {code}",
                    self.endpoint
                );
                state.wakeable = false;
            }
        }
    }

    /// Returns the thread's next step.
    pub(super) fn next(&self) -> Task {
        let mut state = self.state.lock();
        if state.stopping {
            return Task::Stop;
        }
        if let Some(work) = state.work.pop_front() {
            return Task::Work(work);
        }
        state.receives = true;
        state.woken = false;
        let limit = if state.wakeable {
            RECV_TIMEOUT
        } else {
            POLL_INTERVAL
        };
        Task::Receive(limit)
    }

    /// Notes in the thread that its receive is over. Returns whether it was woken: then a
    /// notification without a sender has arrived or is about to.
    pub(super) fn received(&self) -> bool {
        let mut state = self.state.lock();
        state.receives = false;
        state.woken
    }

    /// Sets whether notifications end a receive.
    pub(super) fn set_wakeable(&self, wakeable: bool) {
        self.state.lock().wakeable = wakeable;
    }

    /// Notes that the thread has ended. Queued calls fail.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        for work in state.work.drain(..) {
            if let Work::QueuedCall(call) = work {
                call.fail(Code::EDVSNOTBIND);
            }
        }
        self.changed.notify_all();
    }
}

impl PeerTransport for WorkQueue {
    fn post(&self, header: Header, payload: &[u8]) -> Result<(), NotConnected> {
        match header.command {
            // The kernel itself has answered everything else.
            Command::REPLY_MSG
            | Command::SEND_MSG
            | Command::NTFY_MSG
            | Command::COPYIN_DATA
            | Command::COPYOUT_RQST => self.put(Work::Command(header, payload.to_vec())),
            _ => Ok(()),
        }
    }

    /// The kernel is available as long as the endpoint exists.
    fn wait(&self, _: Instant) -> bool {
        !self.state.lock().ended
    }
}
