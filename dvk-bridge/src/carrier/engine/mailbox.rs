//! What has come for an endpoint and was not received yet, and who waits for its answer.
//!
//! A process of DVK is blocked while it asks or sends, so there is at most one thing of each kind from each. One that asks
//! again was interrupted, and waits for the answer to its newest question: the older one is finished without an answer, and
//! only then is the newer one delivered, so that a client's requests never run into each other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use super::line::PeerId;
use super::sync::{lock, wait_until};
use crate::abi::{Code, Endpoint, Message};
use crate::endpoint::{Delivery, Gone};

/// Who something comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) endpoint: Endpoint,
    pub(super) peer: PeerId,
    pub(super) pid: Option<i32>,
}

/// What is known of one that something came from.
struct Client {
    endpoint: Endpoint,
    peer: PeerId,
    /// Something of it was received, so that it matters if it goes.
    known: bool,
    /// It waits for an answer.
    asks: bool,
    /// The same, again, while its older question is still being served.
    asks_again: Option<(Option<i32>, Message)>,
    /// It waits for its message to be received.
    sends: bool,
    /// Its notification was not received yet.
    notifies: bool,
}

#[derive(Default)]
struct State {
    closed: bool,
    events: VecDeque<Delivery>,
    /// By slot: a slot has one process at a time, so this cannot grow beyond a container's dimensions.
    clients: BTreeMap<i32, Client>,
}

/// The mailbox.
#[derive(Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    arrived: Condvar,
}

/// What [`Mailbox::receive`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// This, and whom to tell that its message was received.
    Event(Delivery, Option<PeerId>),
    /// Nothing in time.
    Nothing,
    /// The endpoint was given up.
    Closed,
}

/// What becomes of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It goes to the client, by this peer.
    Deliver(PeerId),
    /// The client has asked again, and waits for another.
    Superseded,
}

/// One that waited when the endpoint was given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) endpoint: Endpoint,
    pub(super) peer: PeerId,
    /// For an answer, or else for its message to be received.
    pub(super) asks: bool,
}

impl Mailbox {
    /// A question came.
    pub(super) fn request(&self, from: Caller, message: Message) -> Result<(), Code> {
        let mut state = self.open()?;
        let client = state.client(from);
        if client.asks {
            client.asks_again = Some((from.pid, message));
            return Ok(());
        }
        client.asks = true;
        state.events.push_back(Delivery::Request {
            client: from.endpoint,
            pid: from.pid,
            message,
        });
        self.arrived.notify_one();
        Ok(())
    }

    /// A message came, whose sender waits for it to be received.
    pub(super) fn message(&self, from: Caller, message: Message) -> Result<(), Code> {
        let mut state = self.open()?;
        let client = state.client(from);
        if client.sends {
            return Err(Code::EDVSENQUEUED);
        }
        client.sends = true;
        state.events.push_back(Delivery::Message {
            client: from.endpoint,
            message,
        });
        self.arrived.notify_one();
        Ok(())
    }

    /// A notification came.
    pub(super) fn notification(&self, from: Caller) -> Result<(), Code> {
        let mut state = self.open()?;
        let client = state.client(from);
        if !client.notifies {
            client.notifies = true;
            state.events.push_back(Delivery::Notification {
                source: from.endpoint,
            });
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Waits for what comes next, at most until `deadline`.
    pub(super) fn receive(&self, deadline: Instant) -> Received {
        let mut state = lock(&self.state);
        let mut late = false;
        loop {
            if state.closed {
                return Received::Closed;
            }
            if let Some(event) = state.events.pop_front() {
                let told = state.received(&event);
                return Received::Event(event, told);
            }
            if late {
                return Received::Nothing;
            }
            (state, late) = wait_until(&self.arrived, state, deadline);
        }
    }

    /// The peer of `client`, if that waits for the answer to what is being served, and so may be copied with.
    pub(super) fn serving(&self, client: Endpoint) -> Result<PeerId, Code> {
        let state = self.open()?;
        match state.clients.get(&client.slot()) {
            Some(it) if it.endpoint == client && it.asks && it.asks_again.is_none() => Ok(it.peer),
            _ => Err(Code::EDVSPROCSTS),
        }
    }

    /// Ends what is being served for `client`.
    pub(super) fn answer(&self, client: Endpoint) -> Result<Answer, Code> {
        let mut state = self.open()?;
        let found = state.clients.get_mut(&client.slot());
        let it = found
            .filter(|it| it.endpoint == client && it.asks)
            .ok_or(Code::EDVSPROCSTS)?;
        let Some((pid, message)) = it.asks_again.take() else {
            it.asks = false;
            return Ok(Answer::Deliver(it.peer));
        };
        state.events.push_back(Delivery::Request {
            client,
            pid,
            message,
        });
        self.arrived.notify_one();
        Ok(Answer::Superseded)
    }

    /// The peer of `endpoint`, if anything ever came from that.
    pub(super) fn peer_of(&self, endpoint: Endpoint) -> Option<PeerId> {
        let state = lock(&self.state);
        let client = state.clients.get(&endpoint.slot())?;
        (client.endpoint == endpoint).then_some(client.peer)
    }

    /// `endpoint` has gone.
    pub(super) fn gone(&self, endpoint: Endpoint, reason: Gone) {
        let mut state = lock(&self.state);
        let slot = endpoint.slot();
        if state
            .clients
            .get(&slot)
            .is_some_and(|it| it.endpoint == endpoint)
        {
            state.remove(slot, reason);
            self.arrived.notify_one();
        }
    }

    /// All that came by `peer` have gone.
    pub(super) fn peer_lost(&self, peer: PeerId) {
        let mut state = lock(&self.state);
        let theirs = state.clients.iter().filter(|(_, it)| it.peer == peer);
        let slots: Vec<i32> = theirs.map(|(&slot, _)| slot).collect();
        for slot in slots {
            state.remove(slot, Gone::NodeLost);
        }
        self.arrived.notify_all();
    }

    /// The endpoint is given up: those who wait.
    pub(super) fn close(&self) -> Vec<Waiting> {
        let mut state = lock(&self.state);
        state.closed = true;
        state.events.clear();
        self.arrived.notify_all();
        let clients = std::mem::take(&mut state.clients).into_values();
        clients
            .filter(|it| it.asks || it.sends)
            .map(|it| Waiting {
                endpoint: it.endpoint,
                peer: it.peer,
                asks: it.asks,
            })
            .collect()
    }

    /// Those that something came from, and whether they wait for an answer.
    pub(super) fn clients(&self) -> Vec<(Endpoint, PeerId, bool)> {
        let state = lock(&self.state);
        let clients = state.clients.values();
        clients.map(|it| (it.endpoint, it.peer, it.asks)).collect()
    }

    fn open(&self) -> Result<std::sync::MutexGuard<'_, State>, Code> {
        let state = lock(&self.state);
        if state.closed {
            return Err(Code::EDVSDSTDIED);
        }
        Ok(state)
    }
}

impl State {
    /// The record of `from`. Another generation of its slot, or the same slot on another peer, is somebody else.
    fn client(&mut self, from: Caller) -> &mut Client {
        let slot = from.endpoint.slot();
        let other = self.clients.get(&slot);
        if other.is_some_and(|it| it.endpoint != from.endpoint || it.peer != from.peer) {
            self.remove(slot, Gone::Replaced);
        }
        self.clients.entry(slot).or_insert(Client {
            endpoint: from.endpoint,
            peer: from.peer,
            known: false,
            asks: false,
            asks_again: None,
            sends: false,
            notifies: false,
        })
    }

    /// Forgets the client in `slot`, and what came from it and was not received.
    fn remove(&mut self, slot: i32, reason: Gone) {
        let Some(client) = self.clients.remove(&slot) else {
            return;
        };
        let endpoint = client.endpoint;
        self.events.retain(|event| match event {
            Delivery::Request { client, .. } | Delivery::Message { client, .. } => {
                *client != endpoint
            }
            Delivery::Notification { source } => *source != endpoint,
            Delivery::Gone { .. } => true,
        });
        if client.known {
            self.events.push_back(Delivery::Gone {
                client: endpoint,
                reason,
            });
        }
    }

    /// Notes that `event` was received: whom to tell.
    fn received(&mut self, event: &Delivery) -> Option<PeerId> {
        let from = match event {
            Delivery::Request { client, .. } | Delivery::Message { client, .. } => client,
            Delivery::Notification { source } => source,
            Delivery::Gone { .. } => return None,
        };
        let client = self.clients.get_mut(&from.slot())?;
        match event {
            Delivery::Message { .. } => {
                client.known = true;
                client.sends = false;
                Some(client.peer)
            }
            Delivery::Notification { .. } => {
                client.notifies = false;
                None
            }
            _ => {
                client.known = true;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
