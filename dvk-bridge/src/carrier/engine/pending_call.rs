//! The sendrec call of an endpoint, and what arrives for it until it is answered.
//!
//! The calling thread itself does the copies to and from its shared buffers. The thread that reads
//! the connection only queues them here. So no other thread touches the buffers, and nobody does
//! after the call.
//!
//! Each call has a number. At a switch every command about the call carries that number, so a late
//! command is recognised. Nodes do not send it: the engine waits for their answer to an abandoned
//! call before it starts the next.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::fair_lock::{FairLock, Guard};
use super::peer_transport::PeerId;
use crate::abi::{Code, Endpoint, Header, Message};

/// Events that can wait for the caller. A partner has one copy in progress at a time.
const MAX_EVENTS: usize = 64;

/// An event of a call.
#[derive(Debug)]
pub(super) enum CallEvent {
    /// A copy from a shared buffer.
    CopyOut(Header),
    /// A copy to a shared buffer, with its bytes.
    CopyIn(Header, Vec<u8>),
    /// The answer.
    Answer(Message),
    /// The call failed.
    Failed(Code),
    /// The connection was lost.
    Lost,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    /// It was queued for the caller.
    Accepted,
    /// It answers an abandoned call.
    Late,
    /// No call expects it.
    Unexpected,
}

/// The call that waits for its answer.
struct CallInProgress {
    to: Endpoint,
    peer: PeerId,
    ack_seq: u32,
    events: VecDeque<CallEvent>,
}

#[derive(Default)]
struct State {
    asked: Option<CallInProgress>,
    /// The number of the last call.
    ack_seq: u32,
    /// Partners that still owe an answer to an abandoned call, keyed by slot. Their next answer is
    /// that one.
    overdue: BTreeMap<i32, OverdueReply>,
    closed: bool,
}

/// The answer that a partner owes.
struct OverdueReply {
    peer: PeerId,
    ack_seq: u32,
}

/// The calls of one endpoint, one at a time.
pub(super) struct PendingCall {
    /// Whether commands carry the number of their call, which then must match.
    has_ack_seq: bool,
    call_lock: FairLock,
    state: Mutex<State>,
    arrived: Condvar,
}

/// The right to call, and the call in progress, until it is dropped.
pub(super) struct CallHandle<'a> {
    pending_call: &'a PendingCall,
    to: Endpoint,
    peer: PeerId,
    ack_seq: u32,
    finished: bool,
    _guard: Guard<'a>,
}

impl PendingCall {
    /// No call in progress. `has_ack_seq` says whether a partner's commands carry the number of
    /// their call.
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

    /// A number for a message, different from those of all calls and messages.
    pub(super) fn ack_seq(&self) -> u32 {
        self.state.lock().next_ack_seq()
    }

    /// Prepares a call to `to` at `peer`. Returns `None` if another call is in progress, or `to`
    /// owes an earlier answer, until `deadline`.
    pub(super) fn ask(
        &self,
        to: Endpoint,
        peer: PeerId,
        deadline: Instant,
    ) -> Option<CallHandle<'_>> {
        let call_lock = self.call_lock.take(deadline)?;
        let mut state = self.state.lock();
        while state.overdue.contains_key(&to.slot()) && !state.closed {
            let late = self.arrived.wait_until(&mut state, deadline).timed_out();
            if late && state.overdue.contains_key(&to.slot()) {
                return None;
            }
        }
        let ack_seq = state.next_ack_seq();
        state.asked = Some(CallInProgress {
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

    /// Queues `event` from `from` at `peer` for the call with this number.
    pub(super) fn offer(
        &self,
        from: Endpoint,
        peer: PeerId,
        ack_seq: u32,
        event: CallEvent,
    ) -> Disposition {
        self.offer_after(from, peer, ack_seq, event, || ())
    }

    /// As [`Self::offer`], and runs `first` before the caller can see the event. A process may give
    /// up its endpoint as soon as it has its answer, and nothing can be acknowledged after that.
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
        let overdue = state.overdue.get(&from.slot());
        if ends && overdue.is_some_and(|overdue| due(overdue.peer, overdue.ack_seq)) {
            state.overdue.remove(&from.slot());
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

    /// `partner` is gone and answers nothing any more.
    pub(super) fn partner_gone(&self, partner: Endpoint, code: Code) {
        let mut state = self.state.lock();
        state.overdue.remove(&partner.slot());
        if let Some(asked) = state.asked.as_mut().filter(|it| it.to == partner) {
            asked.events.push_back(CallEvent::Failed(code));
        }
        self.arrived.notify_all();
    }

    /// The connection to `peer` is lost, and with it all answers that are owed.
    pub(super) fn peer_lost(&self, peer: PeerId) {
        let mut state = self.state.lock();
        state.overdue.retain(|_, overdue| overdue.peer != peer);
        if let Some(asked) = state.asked.as_mut().filter(|it| it.peer == peer) {
            asked.events.push_back(CallEvent::Lost);
        }
        self.arrived.notify_all();
    }

    /// The endpoint is released.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    /// The endpoint that is called at the moment.
    pub(super) fn asked(&self) -> Option<Endpoint> {
        self.state.lock().asked.as_ref().map(|asked| asked.to)
    }
}

/// The result of [`CallHandle::next`].
#[derive(Debug)]
pub(super) enum Next {
    /// An event of the call.
    Event(CallEvent),
    /// Nothing arrived in time.
    Nothing,
    /// The endpoint was released.
    Closed,
}

impl State {
    fn next_ack_seq(&mut self) -> u32 {
        self.ack_seq = self.ack_seq.wrapping_add(1);
        self.ack_seq
    }
}

impl CallHandle<'_> {
    /// The number of the call.
    pub(super) fn ack_seq(&self) -> u32 {
        self.ack_seq
    }

    /// Waits for the next event until `deadline`.
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

    /// Continues the call after an event that looked like its end.
    pub(super) fn resume(&mut self) {
        self.finished = false;
    }

    /// Ends a call whose request was not sent, so that no answer is owed.
    pub(super) fn cancel_unsent(mut self) {
        self.finished = true;
    }
}

impl Drop for CallHandle<'_> {
    fn drop(&mut self) {
        let mut state = self.pending_call.state.lock();
        // An event that the caller did not read may be the end of the call.
        let events = state.asked.take().map(|it| it.events).unwrap_or_default();
        let ended =
            |event: &CallEvent| !matches!(event, CallEvent::CopyIn(..) | CallEvent::CopyOut(_));
        if !self.finished && !events.iter().any(ended) {
            let (peer, ack_seq) = (self.peer, self.ack_seq);
            state
                .overdue
                .insert(self.to.slot(), OverdueReply { peer, ack_seq });
        }
    }
}

#[cfg(test)]
mod tests;
