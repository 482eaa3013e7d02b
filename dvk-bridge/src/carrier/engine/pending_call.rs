//! The question that an endpoint has asked, and what comes for it until it is answered.
//!
//! Copies to and from what was lent are done by the thread that lent it: whoever reads the connection only leaves them
//! here. So nothing lent is touched by another thread, or after the question is over.
//!
//! Each question has a mark, and at a switch all that comes for it says that mark, so that what is late is known for what
//! it is. Nodes do not say it: of them an answer to a question that was given up is waited for before the next is asked.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::fair_lock::{FairLock, Guard};
use super::peer_transport::PeerId;
use crate::abi::{Code, Endpoint, Header, Message};

/// Most that may come between two looks. A partner has one copy going at a time.
const MAX_EVENTS: usize = 64;

/// What can come for a question.
#[derive(Debug)]
pub(super) enum CallEvent {
    /// A copy from what is lent.
    CopyOut(Header),
    /// A copy to what is lent, with the bytes.
    CopyIn(Header, Vec<u8>),
    /// The answer.
    Answer(Message),
    /// There will be none.
    Failed(Code),
    /// There will be none: the connection is lost.
    Lost,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    /// It was left for who asks.
    Accepted,
    /// It answers a question that was given up.
    Late,
    /// Nobody asked.
    Unexpected,
}

struct Asked {
    to: Endpoint,
    peer: PeerId,
    ack_seq: u32,
    events: VecDeque<CallEvent>,
}

#[derive(Default)]
struct State {
    asked: Option<Asked>,
    /// The last question's.
    ack_seq: u32,
    /// Those who still owe an answer to a question that was given up, by slot: their next answer is that one.
    owed: BTreeMap<i32, OwedReply>,
    closed: bool,
}

/// Who owes an answer, and to which question.
struct OwedReply {
    peer: PeerId,
    ack_seq: u32,
}

/// The question of one endpoint: one at a time.
pub(super) struct PendingCall {
    /// Whether marks are said, and so have to be right.
    has_ack_seq: bool,
    call_lock: FairLock,
    state: Mutex<State>,
    arrived: Condvar,
}

/// The right to ask, and what has been asked, until this is dropped.
pub(super) struct CallHandle<'a> {
    pending_call: &'a PendingCall,
    to: Endpoint,
    peer: PeerId,
    ack_seq: u32,
    finished: bool,
    _guard: Guard<'a>,
}

impl PendingCall {
    /// No question yet. `has_ack_seq` says whether who answers says which question by its mark.
    pub(super) fn new(has_ack_seq: bool) -> Self {
        // A random start, because another process that had this endpoint before has made calls as
        // well. Without random numbers the process id differs from that of the earlier process.
        let ack_seq = getrandom::u32().unwrap_or_else(|_| std::process::id());
        Self {
            has_ack_seq,
            call_lock: FairLock::default(),
            state: Mutex::new(State {
                ack_seq,
                ..State::default()
            }),
            arrived: Condvar::new(),
        }
    }

    /// A mark for something else that is acknowledged, different from those of questions and from each other.
    pub(super) fn ack_seq(&self) -> u32 {
        self.state.lock().next_ack_seq()
    }

    /// Prepares to ask `to`, which is reached by `peer`: nothing if others ask, or `to` owes an earlier answer, until
    /// `deadline`.
    pub(super) fn ask(
        &self,
        to: Endpoint,
        peer: PeerId,
        deadline: Instant,
    ) -> Option<CallHandle<'_>> {
        let call_lock = self.call_lock.take(deadline)?;
        let mut state = self.state.lock();
        while state.owed.contains_key(&to.slot()) && !state.closed {
            let late = self.arrived.wait_until(&mut state, deadline).timed_out();
            if late && state.owed.contains_key(&to.slot()) {
                return None;
            }
        }
        let ack_seq = state.next_ack_seq();
        state.asked = Some(Asked {
            to,
            peer,
            ack_seq,
            events: VecDeque::new(),
        });
        Some(CallHandle {
            pending_call: self,
            to,
            peer,
            ack_seq,
            finished: false,
            _guard: call_lock,
        })
    }

    /// Leaves what came from `from` by `peer`, for the question of this mark, for who asks.
    pub(super) fn offer(
        &self,
        from: Endpoint,
        peer: PeerId,
        ack_seq: u32,
        event: CallEvent,
    ) -> Disposition {
        self.offer_after(from, peer, ack_seq, event, || ())
    }

    /// The same, with `first` done before who asks can know of it, if it is taken at all: as soon as a process has its
    /// answer it may give its endpoint up, and nothing can be acknowledged for it any more.
    pub(super) fn offer_after(
        &self,
        from: Endpoint,
        peer: PeerId,
        ack_seq: u32,
        event: CallEvent,
        first: impl FnOnce(),
    ) -> Disposition {
        let mut state = self.state.lock();
        let due = |of: PeerId, its: u32| of == peer && (!self.has_ack_seq || its == ack_seq);
        let ends = matches!(event, CallEvent::Answer(_) | CallEvent::Failed(_));
        let owed = state.owed.get(&from.slot());
        if ends && owed.is_some_and(|owed| due(owed.peer, owed.ack_seq)) {
            state.owed.remove(&from.slot());
            first();
            self.arrived.notify_all();
            return Disposition::Late;
        }
        match &mut state.asked {
            Some(asked)
                if asked.to == from
                    && due(asked.peer, asked.ack_seq)
                    && asked.events.len() < MAX_EVENTS =>
            {
                first();
                asked.events.push_back(event);
                drop(state);
                self.arrived.notify_all();
                Disposition::Accepted
            }
            _ => Disposition::Unexpected,
        }
    }

    /// `partner` has gone: it answers nothing any more.
    pub(super) fn partner_gone(&self, partner: Endpoint, code: Code) {
        let mut state = self.state.lock();
        state.owed.remove(&partner.slot());
        if let Some(asked) = state.asked.as_mut().filter(|it| it.to == partner) {
            asked.events.push_back(CallEvent::Failed(code));
        }
        self.arrived.notify_all();
    }

    /// The connection to `peer` is lost. What is owed will not come: answers come by connections.
    pub(super) fn peer_lost(&self, peer: PeerId) {
        let mut state = self.state.lock();
        state.owed.retain(|_, owed| owed.peer != peer);
        if let Some(asked) = state.asked.as_mut().filter(|it| it.peer == peer) {
            asked.events.push_back(CallEvent::Lost);
        }
        self.arrived.notify_all();
    }

    /// The endpoint is given up.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Whom the endpoint asks at the moment.
    pub(super) fn asked(&self) -> Option<Endpoint> {
        self.state.lock().asked.as_ref().map(|asked| asked.to)
    }
}

/// What [`CallHandle::next`] found.
#[derive(Debug)]
pub(super) enum Next {
    /// This.
    Event(CallEvent),
    /// Nothing in time.
    Nothing,
    /// The endpoint was given up.
    Closed,
}

impl State {
    fn next_ack_seq(&mut self) -> u32 {
        self.ack_seq = self.ack_seq.wrapping_add(1);
        self.ack_seq
    }
}

impl CallHandle<'_> {
    /// The question's mark.
    pub(super) fn ack_seq(&self) -> u32 {
        self.ack_seq
    }

    /// Waits for what comes next, at most until `deadline`.
    pub(super) fn next(&mut self, deadline: Instant) -> Next {
        let mut state = self.pending_call.state.lock();
        let mut late = false;
        loop {
            if state.closed {
                return Next::Closed;
            }
            let event = state.asked.as_mut().and_then(|it| it.events.pop_front());
            if let Some(event) = event {
                self.finished = !matches!(event, CallEvent::CopyIn(..) | CallEvent::CopyOut(_));
                return Next::Event(event);
            }
            if late {
                return Next::Nothing;
            }
            late = self
                .pending_call
                .arrived
                .wait_until(&mut state, deadline)
                .timed_out();
        }
    }

    /// What looked like the end was none.
    pub(super) fn goes_on(&mut self) {
        self.finished = false;
    }

    /// Nothing was asked after all: nothing is owed.
    pub(super) fn never_asked(mut self) {
        self.finished = true;
    }
}

impl Drop for CallHandle<'_> {
    fn drop(&mut self) {
        let mut state = self.pending_call.state.lock();
        // What came and was not looked at may be the end.
        let events = state.asked.take().map(|it| it.events).unwrap_or_default();
        let ended =
            |event: &CallEvent| !matches!(event, CallEvent::CopyIn(..) | CallEvent::CopyOut(_));
        if !self.finished && !events.iter().any(ended) {
            let (peer, ack_seq) = (self.peer, self.ack_seq);
            state
                .owed
                .insert(self.to.slot(), OwedReply { peer, ack_seq });
        }
    }
}

#[cfg(test)]
mod tests;
