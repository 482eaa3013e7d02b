//! What an endpoint's thread is to do: handed over by all other threads, and how it is woken for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::driver::Driver;
use super::queued_call::QueuedCall;
use crate::abi::{Code, Command, DcId, Endpoint, Header};
use crate::carrier::engine::{NotConnected, PeerTransport};

/// Most that can wait. An endpoint has one exchange at a time; beside that there are notifications.
const MAX_WORK: usize = 1024;

/// How long the kernel may keep the thread in a receive where it can be woken. Were a call to wake it ever lost, nothing waits
/// longer than this.
const RECV_TIMEOUT: Duration = Duration::from_secs(1);

/// The same where it cannot be woken: the longest that everything else has to wait.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Something to do.
pub(super) enum Work {
    /// A command of the engine's, with its payload.
    Command(Header, Vec<u8>),
    /// A question.
    QueuedCall(Arc<QueuedCall>),
}

/// What the thread does next.
pub(super) enum Task {
    /// This.
    Work(Work),
    /// It receives, and waits no longer than this.
    Receive(Duration),
    /// It gives the endpoint up.
    Stop,
}

struct State {
    work: VecDeque<Work>,
    /// The thread is about to receive, or does.
    receives: bool,
    /// It was woken since.
    woken: bool,
    /// Waking works.
    wakeable: bool,
    stopping: bool,
    ended: bool,
}

/// The way to the thread.
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

    /// Hands something over. Never waits.
    pub(super) fn put(&self, work: Work) -> Result<(), NotConnected> {
        let mut state = self.state.lock();
        if state.stopping || state.ended || state.work.len() >= MAX_WORK {
            return Err(NotConnected);
        }
        state.work.push_back(work);
        self.wake(&mut state);
        Ok(())
    }

    /// Has the thread stop, whatever is still to do.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        self.wake(&mut state);
    }

    /// Waits until the thread has stopped, at most `limit`: whether it has.
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

    /// Takes the thread out of its receive. A notification waits for the thread if it is not there yet, so none is lost.
    fn wake(&self, state: &mut State) {
        if !state.receives || state.woken || !state.wakeable {
            return;
        }
        match self.driver.wake(self.dc, self.endpoint) {
            // It is there already.
            Ok(_) | Err(Code::EDVSOVERRUN) => state.woken = true,
            Err(code) => {
                log::warn!(
                    "endpoint {}: a receive cannot be interrupted any more, and is done by the moment: {code}",
                    self.endpoint
                );
                state.wakeable = false;
            }
        }
    }

    /// The thread: what it does next.
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

    /// The thread: its receive is over. Whether it was woken, and so has a notification before it that is nobody's, or had it.
    pub(super) fn received(&self) -> bool {
        let mut state = self.state.lock();
        state.receives = false;
        state.woken
    }

    /// The thread: whether it can be woken.
    pub(super) fn set_wakeable(&self, wakeable: bool) {
        self.state.lock().wakeable = wakeable;
    }

    /// The thread: it has ended. What is still to do is given up.
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
            // What others have asked for, the kernel has answered itself.
            Command::REPLY_MSG
            | Command::SEND_MSG
            | Command::NTFY_MSG
            | Command::COPYIN_DATA
            | Command::COPYOUT_RQST => self.put(Work::Command(header, payload.to_vec())),
            _ => Ok(()),
        }
    }

    /// The kernel is there as long as the endpoint is.
    fn wait(&self, _: Instant) -> bool {
        !self.state.lock().ended
    }
}
