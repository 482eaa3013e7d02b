//! The question that an endpoint has asked, and what comes for it until it is answered.
//!
//! Copies to and from what was lent are done by the thread that lent it: whoever reads the connection only leaves them
//! here. So nothing lent is touched by another thread, or after the question is over.
//!
//! Each question has a mark, and at a switch all that comes for it says that mark, so that what is late is known for what
//! it is. Nodes do not say it: of them an answer to a question that was given up is waited for before the next is asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use super::line::PeerId;
use super::sync::{lock, wait_until};
use super::turn::{Had, Turn};
use crate::abi::{Code, Endpoint, Header, Message};
use crate::chance::anything;

/// Most that may come between two looks. A partner has one copy going at a time.
const MOST_EVENTS: usize = 64;

/// What can come for a question.
#[derive(Debug)]
pub(super) enum Event {
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
pub(super) enum Taken {
    /// It was left for who asks.
    Yes,
    /// It answers a question that was given up.
    Late,
    /// Nobody asked.
    No,
}

struct Asked {
    to: Endpoint,
    peer: PeerId,
    mark: u32,
    events: VecDeque<Event>,
}

#[derive(Default)]
struct State {
    asked: Option<Asked>,
    /// The last question's.
    mark: u32,
    /// Those who still owe an answer to a question that was given up, by slot: their next answer is that one.
    owing: BTreeMap<i32, Owing>,
    closed: bool,
}

/// Who owes an answer, and to which question.
struct Owing {
    peer: PeerId,
    mark: u32,
}

/// The question of one endpoint: one at a time.
pub(super) struct Question {
    /// Whether marks are said, and so have to be right.
    marked: bool,
    turn: Turn,
    state: Mutex<State>,
    arrived: Condvar,
}

/// The right to ask, and what has been asked, until this is dropped.
pub(super) struct Asking<'a> {
    question: &'a Question,
    to: Endpoint,
    peer: PeerId,
    mark: u32,
    finished: bool,
    _turn: Had<'a>,
}

impl Question {
    /// No question yet. `marked` says whether who answers says which question by its mark.
    pub(super) fn new(marked: bool) -> Self {
        // Begun anywhere: another process that had this endpoint has asked questions too.
        let mark = anything();
        Self {
            marked,
            turn: Turn::default(),
            state: Mutex::new(State {
                mark,
                ..State::default()
            }),
            arrived: Condvar::new(),
        }
    }

    /// A mark for something else that is acknowledged, different from those of questions and from each other.
    pub(super) fn mark(&self) -> u32 {
        lock(&self.state).next_mark()
    }

    /// Prepares to ask `to`, which is reached by `peer`: nothing if others ask, or `to` owes an earlier answer, until
    /// `deadline`.
    pub(super) fn ask(&self, to: Endpoint, peer: PeerId, deadline: Instant) -> Option<Asking<'_>> {
        let turn = self.turn.take(deadline)?;
        let mut state = lock(&self.state);
        while state.owing.contains_key(&to.slot()) && !state.closed {
            let late;
            (state, late) = wait_until(&self.arrived, state, deadline);
            if late && state.owing.contains_key(&to.slot()) {
                return None;
            }
        }
        let mark = state.next_mark();
        state.asked = Some(Asked {
            to,
            peer,
            mark,
            events: VecDeque::new(),
        });
        Some(Asking {
            question: self,
            to,
            peer,
            mark,
            finished: false,
            _turn: turn,
        })
    }

    /// Leaves what came from `from` by `peer`, for the question of this mark, for who asks.
    pub(super) fn offer(&self, from: Endpoint, peer: PeerId, mark: u32, event: Event) -> Taken {
        self.offer_after(from, peer, mark, event, || ())
    }

    /// The same, with `first` done before who asks can know of it, if it is taken at all: as soon as a process has its
    /// answer it may give its endpoint up, and nothing can be acknowledged for it any more.
    pub(super) fn offer_after(
        &self,
        from: Endpoint,
        peer: PeerId,
        mark: u32,
        event: Event,
        first: impl FnOnce(),
    ) -> Taken {
        let mut state = lock(&self.state);
        let due = |of: PeerId, its: u32| of == peer && (!self.marked || its == mark);
        let ends = matches!(event, Event::Answer(_) | Event::Failed(_));
        let owing = state.owing.get(&from.slot());
        if ends && owing.is_some_and(|owing| due(owing.peer, owing.mark)) {
            state.owing.remove(&from.slot());
            first();
            self.arrived.notify_all();
            return Taken::Late;
        }
        match &mut state.asked {
            Some(asked)
                if asked.to == from
                    && due(asked.peer, asked.mark)
                    && asked.events.len() < MOST_EVENTS =>
            {
                first();
                asked.events.push_back(event);
                drop(state);
                self.arrived.notify_all();
                Taken::Yes
            }
            _ => Taken::No,
        }
    }

    /// `partner` has gone: it answers nothing any more.
    pub(super) fn partner_gone(&self, partner: Endpoint, code: Code) {
        let mut state = lock(&self.state);
        state.owing.remove(&partner.slot());
        if let Some(asked) = state.asked.as_mut().filter(|it| it.to == partner) {
            asked.events.push_back(Event::Failed(code));
        }
        self.arrived.notify_all();
    }

    /// The connection to `peer` is lost. What is owed will not come: answers come by connections.
    pub(super) fn peer_lost(&self, peer: PeerId) {
        let mut state = lock(&self.state);
        state.owing.retain(|_, owing| owing.peer != peer);
        if let Some(asked) = state.asked.as_mut().filter(|it| it.peer == peer) {
            asked.events.push_back(Event::Lost);
        }
        self.arrived.notify_all();
    }

    /// The endpoint is given up.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.arrived.notify_all();
    }

    /// Whom the endpoint asks at the moment.
    pub(super) fn asked(&self) -> Option<Endpoint> {
        lock(&self.state).asked.as_ref().map(|asked| asked.to)
    }
}

/// What [`Asking::next`] found.
#[derive(Debug)]
pub(super) enum Next {
    /// This.
    Event(Event),
    /// Nothing in time.
    Nothing,
    /// The endpoint was given up.
    Closed,
}

impl State {
    fn next_mark(&mut self) -> u32 {
        self.mark = self.mark.wrapping_add(1);
        self.mark
    }
}

impl Asking<'_> {
    /// The question's mark.
    pub(super) fn mark(&self) -> u32 {
        self.mark
    }

    /// Waits for what comes next, at most until `deadline`.
    pub(super) fn next(&mut self, deadline: Instant) -> Next {
        let mut state = lock(&self.question.state);
        let mut late = false;
        loop {
            if state.closed {
                return Next::Closed;
            }
            let event = state.asked.as_mut().and_then(|it| it.events.pop_front());
            if let Some(event) = event {
                self.finished = !matches!(event, Event::CopyIn(..) | Event::CopyOut(_));
                return Next::Event(event);
            }
            if late {
                return Next::Nothing;
            }
            (state, late) = wait_until(&self.question.arrived, state, deadline);
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

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.question.state);
        // What came and was not looked at may be the end.
        let events = state.asked.take().map(|it| it.events).unwrap_or_default();
        let ended = |event: &Event| !matches!(event, Event::CopyIn(..) | Event::CopyOut(_));
        if !self.finished && !events.iter().any(ended) {
            let (peer, mark) = (self.peer, self.mark);
            state.owing.insert(self.to.slot(), Owing { peer, mark });
        }
    }
}

#[cfg(test)]
mod tests;
