//! A sendrec call that waits for the endpoint's thread, and the thread that waits for its result.
//!
//! While the kernel has the call, the partner may copy to and from the shared buffers. So the
//! caller can give up before the endpoint's thread has taken the call, but not between then and its
//! end. The kernel's own time limit bounds that.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::abi::{Code, Endpoint, Message};

enum State {
    Waiting,
    /// The kernel has the call.
    Taken,
    Over(Result<Message, Code>),
}

/// A sendrec call for the endpoint's thread.
pub(super) struct QueuedCall {
    pub(super) to: Endpoint,
    pub(super) message: Message,
    deadline: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

impl QueuedCall {
    /// A call of `to` with `message` and the time limit `limit`.
    pub(super) fn new(to: Endpoint, message: Message, limit: Duration) -> Self {
        Self {
            to,
            message,
            deadline: Instant::now() + limit,
            state: Mutex::new(State::Waiting),
            changed: Condvar::new(),
        }
    }

    /// Takes the call in the endpoint's thread. Returns the time left, or `None` if the caller has
    /// given up.
    pub(super) fn take(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        matches!(*state, State::Waiting).then(|| {
            *state = State::Taken;
            self.deadline.saturating_duration_since(Instant::now())
        })
    }

    /// Reports the result from the endpoint's thread.
    pub(super) fn end(&self, outcome: Result<Message, Code>) {
        *self.state.lock() = State::Over(outcome);
        self.changed.notify_all();
    }

    /// Reports that the call will not be made.
    pub(super) fn fail(&self, code: Code) {
        self.end(Err(code));
    }

    /// Waits for the result.
    pub(super) fn wait(&self) -> Result<Message, Code> {
        let mut state = self.state.lock();
        loop {
            match &*state {
                State::Over(outcome) => return *outcome,
                State::Taken => {
                    // The kernel ends the call. The buffers belong to it until then.
                    let soon = Instant::now() + Duration::from_secs(1);
                    self.changed.wait_until(&mut state, soon);
                }
                State::Waiting => {
                    let late = self
                        .changed
                        .wait_until(&mut state, self.deadline)
                        .timed_out();
                    if late && matches!(*state, State::Waiting) {
                        *state = State::Over(Err(Code::EDVSTIMEDOUT));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn call(limit: Duration) -> QueuedCall {
        QueuedCall::new(Endpoint::from_raw(1), Message::default(), limit)
    }

    #[test]
    fn a_call_that_is_not_taken_is_cancelled_at_its_limit() {
        let call = call(Duration::from_millis(10));
        assert_eq!(call.wait(), Err(Code::EDVSTIMEDOUT));
        assert_eq!(call.take(), None);
    }

    #[test]
    fn a_taken_call_is_awaited_beyond_its_limit() {
        let call = Arc::new(call(Duration::from_millis(10)));
        assert!(call.take().is_some());
        let (waits, asked) = (call.clone(), call);
        let waiting = thread::spawn(move || waits.wait());
        thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished(), "the kernel still uses the buffers");
        asked.end(Ok(Message::default()));
        assert_eq!(waiting.join().unwrap(), Ok(Message::default()));
    }
}
