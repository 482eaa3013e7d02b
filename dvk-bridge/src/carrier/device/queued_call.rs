//! A question for the endpoint's thread to ask, and who waits for it.
//!
//! As long as the kernel has the question, its partner may copy to and from what is lent for it. So who has asked can give up
//! before the thread has taken the question, and not between that and its end, which the kernel's own limit brings.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::abi::{Code, Endpoint, Message};

enum State {
    Waiting,
    Asked,
    Over(Result<Message, Code>),
}

/// The question.
pub(super) struct QueuedCall {
    pub(super) to: Endpoint,
    pub(super) message: Message,
    deadline: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

impl QueuedCall {
    /// `message` for `to`, to be answered within `limit`.
    pub(super) fn new(to: Endpoint, message: Message, limit: Duration) -> Self {
        Self {
            to,
            message,
            deadline: Instant::now() + limit,
            state: Mutex::new(State::Waiting),
            changed: Condvar::new(),
        }
    }

    /// The thread takes it: how long it may take; nothing if it was given up.
    pub(super) fn take(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        matches!(*state, State::Waiting).then(|| {
            *state = State::Asked;
            self.deadline.saturating_duration_since(Instant::now())
        })
    }

    /// The thread has an end of it.
    pub(super) fn end(&self, outcome: Result<Message, Code>) {
        *self.state.lock() = State::Over(outcome);
        self.changed.notify_all();
    }

    /// It will not be asked.
    pub(super) fn fail(&self, code: Code) {
        self.end(Err(code));
    }

    /// Waits for the end: the answer, or why there is none.
    pub(super) fn wait(&self) -> Result<Message, Code> {
        let mut state = self.state.lock();
        loop {
            match &*state {
                State::Over(outcome) => return *outcome,
                State::Asked => {
                    // The kernel ends it; what is lent is not ours before.
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
    fn a_question_that_nobody_takes_is_given_up_and_not_taken_later() {
        let call = call(Duration::from_millis(10));
        assert_eq!(call.wait(), Err(Code::EDVSTIMEDOUT));
        assert_eq!(call.take(), None);
    }

    #[test]
    fn a_question_that_was_taken_is_waited_for_beyond_its_limit() {
        let call = Arc::new(call(Duration::from_millis(10)));
        assert!(call.take().is_some());
        let (waits, asked) = (call.clone(), call);
        let waiting = thread::spawn(move || waits.wait());
        thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished(), "what is lent is still the kernel's");
        asked.end(Ok(Message::default()));
        assert_eq!(waiting.join().unwrap(), Ok(Message::default()));
    }
}
