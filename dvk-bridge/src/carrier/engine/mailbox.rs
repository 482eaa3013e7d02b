//! What has come for an endpoint and was not received yet, and who waits for its answer.
//!
//! A process of DVK is blocked while it asks or sends, so there is at most one thing of each kind from each. One that asks
//! again was interrupted, and waits for the answer to its newest question: the older one is finished without an answer, and
//! only then is the newer one delivered, so that a client's requests never run into each other.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::peer_transport::PeerId;
use crate::abi::{Code, Endpoint, Message};
use crate::endpoint::{Delivery, Gone, RequestId};

/// Who something comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender {
    pub(super) endpoint: Endpoint,
    pub(super) peer: PeerId,
    pub(super) pid: Option<i32>,
    /// The number that it has given to what it says, to be told with all that belongs to that.
    pub(super) ack_seq: u32,
}

/// A request, as far as it matters until it is answered.
struct Request {
    number: u64,
    ack_seq: u32,
    received: bool,
}

/// What is known of one that something came from.
struct Client {
    endpoint: Endpoint,
    peer: PeerId,
    /// Something of it was received, so that it matters if it goes.
    known: bool,
    /// It waits for an answer.
    asks: Option<Request>,
    /// The last of its requests that was answered.
    answered: Option<u64>,
    /// The same, again, while its older question is still being served.
    asks_again: Option<(Sender, Message)>,
    /// It waits for its message, of this mark, to be received.
    sends: Option<u32>,
    /// Its notification was not received yet.
    notifies: bool,
}

#[derive(Default)]
struct State {
    closed: bool,
    events: VecDeque<Delivery>,
    /// Requests that ever came.
    requests: u64,
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
    Event(Delivery, Option<ReplyRoute>),
    /// Nothing in time.
    Nothing,
    /// The endpoint was given up.
    Closed,
}

/// How a client is reached, and the number it has given to what is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyRoute {
    pub(super) peer: PeerId,
    pub(super) ack_seq: u32,
}

/// Why nothing is done for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotServing {
    /// Its client does not wait for it.
    NotWaiting,
    /// The endpoint was given up.
    Unbound,
}

/// The mailbox as it is: as long as this is held, nobody goes, comes or asks again.
pub(super) struct MailboxGuard<'a> {
    _state: MutexGuard<'a, State>,
}

/// One that waited when the endpoint was given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WaitingClient {
    pub(super) endpoint: Endpoint,
    pub(super) route: ReplyRoute,
    /// For an answer, or else for its message to be received.
    pub(super) asks: bool,
}

impl Mailbox {
    /// A question came.
    pub(super) fn request(&self, from: Sender, message: Message) -> Result<(), Code> {
        let mut state = self.open()?;
        let client = state.client(from)?;
        if client.asks.is_some() {
            client.asks_again = Some((from, message));
            return Ok(());
        }
        state.ask(from, message);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// A message came, whose sender waits for it to be received.
    pub(super) fn message(&self, from: Sender, message: Message) -> Result<(), Code> {
        let mut state = self.open()?;
        let client = state.client(from)?;
        if client.sends.is_some() {
            return Err(Code::EDVSENQUEUED);
        }
        client.sends = Some(from.ack_seq);
        state.events.push_back(Delivery::Message {
            client: from.endpoint,
            message,
        });
        self.arrived.notify_one();
        Ok(())
    }

    /// A notification came.
    pub(super) fn notification(&self, from: Sender) -> Result<(), Code> {
        let mut state = self.open()?;
        let client = state.client(from)?;
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
        let mut state = self.state.lock();
        let mut late = false;
        loop {
            if state.closed {
                return Received::Closed;
            }
            if let Some(event) = state.events.pop_front() {
                let route_of_sender = state.received(&event);
                return Received::Event(event, route_of_sender);
            }
            if late {
                return Received::Nothing;
            }
            late = self.arrived.wait_until(&mut state, deadline).timed_out();
        }
    }

    /// The way to the client of `request`, which may have asked again.
    pub(super) fn route(&self, request: RequestId) -> Result<ReplyRoute, NotServing> {
        let state = self.own()?;
        let (client, ack_seq) = state.call_of(request)?;
        let peer = client.peer;
        Ok(ReplyRoute { peer, ack_seq })
    }

    /// Holds the mailbox if the client of `request` waits for the answer to that and so may be copied with.
    pub(super) fn serving(&self, request: RequestId) -> Result<MailboxGuard<'_>, NotServing> {
        let state = self.own()?;
        let (client, _) = state.call_of(request)?;
        if client.asks_again.is_some() {
            return Err(NotServing::NotWaiting);
        }
        Ok(MailboxGuard { _state: state })
    }

    /// Ends `request`: holds the mailbox if its client is to get the answer, and has nothing to hold if that has asked again
    /// and waits for another.
    pub(super) fn answer(
        &self,
        request: RequestId,
    ) -> Result<Option<MailboxGuard<'_>>, NotServing> {
        let mut state = self.own()?;
        state.call_of(request)?;
        let client = state.clients.get_mut(&request.client().slot());
        let client = client.ok_or(NotServing::NotWaiting)?;
        client.asks = None;
        client.answered = Some(request.number());
        let Some((from, message)) = client.asks_again.take() else {
            return Ok(Some(MailboxGuard { _state: state }));
        };
        state.ask(from, message);
        self.arrived.notify_one();
        Ok(None)
    }

    /// Holds the mailbox if `request` was answered and its client has not asked since, so that the same answer can be sent again.
    pub(super) fn answered(
        &self,
        request: RequestId,
    ) -> Result<Option<MailboxGuard<'_>>, NotServing> {
        let state = self.own()?;
        let client = state.clients.get(&request.client().slot());
        let waits = client.is_some_and(|it| {
            it.endpoint == request.client()
                && it.answered == Some(request.number())
                && it.asks.is_none()
        });
        if waits {
            Ok(Some(MailboxGuard { _state: state }))
        } else {
            Err(NotServing::NotWaiting)
        }
    }

    /// The request of `client` that is being served, if one is.
    pub(super) fn served(&self, client: Endpoint) -> Option<RequestId> {
        let state = self.state.lock();
        let it = state.clients.get(&client.slot())?;
        let request = it.asks.as_ref().filter(|request| request.received)?;
        (it.endpoint == client).then(|| RequestId::new(client, request.number))
    }

    /// Whether the endpoint was given up.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// The peer of `endpoint`, if anything ever came from that.
    pub(super) fn peer_of(&self, endpoint: Endpoint) -> Option<PeerId> {
        let state = self.state.lock();
        let client = state.clients.get(&endpoint.slot())?;
        (client.endpoint == endpoint).then_some(client.peer)
    }

    /// The peer whose process has `endpoint`'s slot, if anything ever came from one.
    pub(super) fn owner_of(&self, endpoint: Endpoint) -> Option<PeerId> {
        let state = self.state.lock();
        state.clients.get(&endpoint.slot()).map(|it| it.peer)
    }

    /// `endpoint` has gone.
    pub(super) fn gone(&self, endpoint: Endpoint, reason: Gone) {
        let mut state = self.state.lock();
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
        let mut state = self.state.lock();
        let theirs = state.clients.iter().filter(|(_, it)| it.peer == peer);
        let slots: Vec<i32> = theirs.map(|(&slot, _)| slot).collect();
        for slot in slots {
            state.remove(slot, Gone::NodeLost);
        }
        self.arrived.notify_all();
    }

    /// The endpoint is given up: those who wait.
    pub(super) fn close(&self) -> Vec<WaitingClient> {
        let mut state = self.state.lock();
        state.closed = true;
        state.events.clear();
        self.arrived.notify_all();
        let clients = std::mem::take(&mut state.clients).into_values();
        clients
            .filter_map(|it| {
                // Who has asked again waits for the answer to that alone.
                let again = it.asks_again.map(|(from, _)| from.ack_seq);
                let question = again.or(it.asks.map(|request| request.ack_seq));
                Some(WaitingClient {
                    endpoint: it.endpoint,
                    route: ReplyRoute {
                        peer: it.peer,
                        ack_seq: question.or(it.sends)?,
                    },
                    asks: question.is_some(),
                })
            })
            .collect()
    }

    /// Those that something came from, and whether they wait for an answer.
    pub(super) fn clients(&self) -> Vec<(Endpoint, PeerId, bool)> {
        let state = self.state.lock();
        let clients = state.clients.values();
        clients
            .map(|it| (it.endpoint, it.peer, it.asks.is_some()))
            .collect()
    }

    /// The state, for what the endpoint itself does.
    fn own(&self) -> Result<MutexGuard<'_, State>, NotServing> {
        let state = self.state.lock();
        if state.closed {
            return Err(NotServing::Unbound);
        }
        Ok(state)
    }

    /// The state, for what comes.
    fn open(&self) -> Result<MutexGuard<'_, State>, Code> {
        let state = self.state.lock();
        if state.closed {
            return Err(Code::EDVSDSTDIED);
        }
        Ok(state)
    }
}

impl State {
    /// The record of `from`. Another generation of its slot is another process, which has replaced the first. The same slot
    /// on another peer is nobody: as long as the first peer is there, the slot is in use.
    fn client(&mut self, from: Sender) -> Result<&mut Client, Code> {
        let slot = from.endpoint.slot();
        if let Some(other) = self.clients.get(&slot) {
            if other.peer != from.peer {
                return Err(Code::EDVSNONODE);
            }
            if other.endpoint != from.endpoint {
                self.remove(slot, Gone::Replaced);
            }
        }
        Ok(self.clients.entry(slot).or_insert(Client {
            endpoint: from.endpoint,
            peer: from.peer,
            known: false,
            asks: None,
            answered: None,
            asks_again: None,
            sends: None,
            notifies: false,
        }))
    }

    /// The client of `request`, and the mark of that, if it was not answered yet.
    fn call_of(&self, request: RequestId) -> Result<(&Client, u32), NotServing> {
        let client = self.clients.get(&request.client().slot());
        let client = client.filter(|it| it.endpoint == request.client());
        let client = client.ok_or(NotServing::NotWaiting)?;
        match &client.asks {
            Some(asks) if asks.number == request.number() => Ok((client, asks.ack_seq)),
            _ => Err(NotServing::NotWaiting),
        }
    }

    /// Has what `from`, whose record there is, asks received in its turn.
    fn ask(&mut self, from: Sender, message: Message) {
        let Some(client) = self.clients.get_mut(&from.endpoint.slot()) else {
            return;
        };
        let number = self.requests;
        client.asks = Some(Request {
            number,
            ack_seq: from.ack_seq,
            received: false,
        });
        self.requests += 1;
        self.events.push_back(Delivery::Request {
            request: RequestId::new(from.endpoint, number),
            pid: from.pid,
            message,
        });
    }

    /// Forgets the client in `slot`, and what came from it and was not received.
    fn remove(&mut self, slot: i32, reason: Gone) {
        let Some(client) = self.clients.remove(&slot) else {
            return;
        };
        let endpoint = client.endpoint;
        self.events.retain(|event| match event {
            Delivery::Request { request, .. } => request.client() != endpoint,
            Delivery::Message { client, .. } => *client != endpoint,
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
    fn received(&mut self, event: &Delivery) -> Option<ReplyRoute> {
        let from = match event {
            Delivery::Request { request, .. } => request.client(),
            Delivery::Message { client, .. } => *client,
            Delivery::Notification { source } => *source,
            Delivery::Gone { .. } => return None,
        };
        let client = self.clients.get_mut(&from.slot())?;
        match event {
            Delivery::Message { .. } => {
                client.known = true;
                let ack_seq = client.sends.take()?;
                let peer = client.peer;
                Some(ReplyRoute { peer, ack_seq })
            }
            Delivery::Notification { .. } => {
                client.notifies = false;
                None
            }
            _ => {
                client.known = true;
                if let Some(request) = &mut client.asks {
                    request.received = true;
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
