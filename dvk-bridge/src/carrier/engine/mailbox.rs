//! What has arrived for an endpoint and was not received yet, and which clients wait for an answer.
//!
//! DVK blocks a process while it calls or sends, so at most one request and one message of each
//! client are here. A client that sends a second request was interrupted and waits for the answer
//! to the newer one. The mailbox finishes the older request without an answer before it delivers
//! the newer one, so two requests of a client never overlap.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::peer_transport::PeerId;
use crate::abi::{Code, Endpoint, Message};
use crate::endpoint::{Delivery, Gone, RequestId};

/// The sender of a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender {
    pub(super) endpoint: Endpoint,
    pub(super) peer: PeerId,
    pub(super) pid: Option<i32>,
    /// The number of the command (`c_ack_seq`), which every command about it repeats.
    pub(super) ack_seq: u32,
}

/// A request that was not answered yet.
struct Request {
    number: u64,
    ack_seq: u32,
    received: bool,
}

/// A process that has sent something.
struct Client {
    endpoint: Endpoint,
    peer: PeerId,
    /// The endpoint has received something from it, and so learns of its end.
    known: bool,
    /// The request whose answer it waits for.
    asks: Option<Request>,
    /// The number of its last answered request.
    answered: Option<u64>,
    /// A newer request, which arrived while the older one is being served.
    asks_again: Option<(Sender, Message)>,
    /// The number of its message that was not received yet.
    sends: Option<u32>,
    /// Its notification was not received yet.
    notifies: bool,
}

#[derive(Default)]
struct State {
    closed: bool,
    events: VecDeque<Delivery>,
    /// Counts all requests.
    requests: u64,
    /// Keyed by slot. A slot has one process at a time, so the size is bounded by the container's
    /// dimensions.
    clients: BTreeMap<i32, Client>,
}

/// The mailbox of one endpoint.
#[derive(Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    arrived: Condvar,
}

/// The result of [`Mailbox::receive`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// An event, and where to acknowledge it if its sender waits for that.
    Event(Delivery, Option<ReplyRoute>),
    /// Nothing arrived in time.
    Nothing,
    /// The endpoint was released.
    Closed,
}

/// The peer of a client, and the number of the client's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyRoute {
    pub(super) peer: PeerId,
    pub(super) ack_seq: u32,
}

/// Why a request cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestEnded {
    /// The client does not wait for its answer.
    NotWaiting,
    /// The endpoint was released.
    Unbound,
}

/// Locks the mailbox: no client leaves, arrives or sends another request meanwhile.
pub(super) struct MailboxGuard<'a> {
    _state: MutexGuard<'a, State>,
}

/// A client that waited when the endpoint was released.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WaitingClient {
    pub(super) endpoint: Endpoint,
    pub(super) route: ReplyRoute,
    /// Waits for an answer. Otherwise it waits until its message is received.
    pub(super) asks: bool,
}

impl Mailbox {
    /// Accepts a request.
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

    /// Accepts a message, whose sender waits until it is received.
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

    /// Accepts a notification.
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

    /// Waits for the next event until `deadline`.
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

    /// The route to the client of `request`. The client may have sent a newer request since.
    pub(super) fn route(&self, request: RequestId) -> Result<ReplyRoute, RequestEnded> {
        let state = self.own()?;
        let (client, ack_seq) = state.call_of(request)?;
        let peer = client.peer;
        Ok(ReplyRoute { peer, ack_seq })
    }

    /// Locks the mailbox if the client of `request` waits for its answer, and so allows copies.
    pub(super) fn serving(&self, request: RequestId) -> Result<MailboxGuard<'_>, RequestEnded> {
        let state = self.own()?;
        let (client, _) = state.call_of(request)?;
        if client.asks_again.is_some() {
            return Err(RequestEnded::NotWaiting);
        }
        Ok(MailboxGuard { _state: state })
    }

    /// Ends `request`. Locks the mailbox if the answer is to be sent, and returns `None` if the
    /// client waits for the answer to a newer request.
    pub(super) fn answer(
        &self,
        request: RequestId,
    ) -> Result<Option<MailboxGuard<'_>>, RequestEnded> {
        let mut state = self.own()?;
        state.call_of(request)?;
        let client = state.clients.get_mut(&request.client().slot());
        let client = client.ok_or(RequestEnded::NotWaiting)?;
        client.asks = None;
        client.answered = Some(request.number());
        let Some((from, message)) = client.asks_again.take() else {
            return Ok(Some(MailboxGuard { _state: state }));
        };
        state.ask(from, message);
        self.arrived.notify_one();
        Ok(None)
    }

    /// Locks the mailbox if `request` was answered and its client has sent no request since, so
    /// that the same answer can be sent again.
    pub(super) fn answered(
        &self,
        request: RequestId,
    ) -> Result<Option<MailboxGuard<'_>>, RequestEnded> {
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
            Err(RequestEnded::NotWaiting)
        }
    }

    /// The request of `client` that is being served.
    pub(super) fn served(&self, client: Endpoint) -> Option<RequestId> {
        let state = self.state.lock();
        let it = state.clients.get(&client.slot())?;
        let request = it.asks.as_ref().filter(|request| request.received)?;
        (it.endpoint == client).then(|| RequestId::new(client, request.number))
    }

    /// Whether the endpoint was released.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// The peer of `endpoint`, if `endpoint` has ever sent anything.
    pub(super) fn peer_of(&self, endpoint: Endpoint) -> Option<PeerId> {
        let state = self.state.lock();
        let client = state.clients.get(&endpoint.slot())?;
        (client.endpoint == endpoint).then_some(client.peer)
    }

    /// The peer whose process has the slot of `endpoint`, if one has ever sent anything.
    pub(super) fn owner_of(&self, endpoint: Endpoint) -> Option<PeerId> {
        let state = self.state.lock();
        state.clients.get(&endpoint.slot()).map(|it| it.peer)
    }

    /// `endpoint` is gone.
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

    /// All clients at `peer` are gone.
    pub(super) fn peer_lost(&self, peer: PeerId) {
        let mut state = self.state.lock();
        let theirs = state.clients.iter().filter(|(_, it)| it.peer == peer);
        let slots: Vec<i32> = theirs.map(|(&slot, _)| slot).collect();
        for slot in slots {
            state.remove(slot, Gone::NodeLost);
        }
        self.arrived.notify_all();
    }

    /// Gives the endpoint up. Returns the clients that wait.
    pub(super) fn close(&self) -> Vec<WaitingClient> {
        let mut state = self.state.lock();
        state.closed = true;
        state.events.clear();
        self.arrived.notify_all();
        let clients = std::mem::take(&mut state.clients).into_values();
        clients
            .filter_map(|it| {
                // A client with a newer request waits for the answer to that one alone.
                let again = it.asks_again.map(|(from, _)| from.ack_seq);
                let request = again.or(it.asks.map(|request| request.ack_seq));
                Some(WaitingClient {
                    endpoint: it.endpoint,
                    route: ReplyRoute {
                        peer: it.peer,
                        ack_seq: request.or(it.sends)?,
                    },
                    asks: request.is_some(),
                })
            })
            .collect()
    }

    /// All clients, and whether each waits for an answer.
    pub(super) fn clients(&self) -> Vec<(Endpoint, PeerId, bool)> {
        let state = self.state.lock();
        let clients = state.clients.values();
        clients
            .map(|it| (it.endpoint, it.peer, it.asks.is_some()))
            .collect()
    }

    /// Locks the state for an operation of the endpoint itself.
    fn own(&self) -> Result<MutexGuard<'_, State>, RequestEnded> {
        let state = self.state.lock();
        if state.closed {
            return Err(RequestEnded::Unbound);
        }
        Ok(state)
    }

    /// Locks the state for a command that arrives.
    fn open(&self) -> Result<MutexGuard<'_, State>, Code> {
        let state = self.state.lock();
        if state.closed {
            return Err(Code::EDVSDSTDIED);
        }
        Ok(state)
    }
}

impl State {
    /// The record of `from`. Another generation of the slot is another process and replaces the
    /// first. The same slot at another peer is refused while the first peer is connected.
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

    /// The client of `request` and the number of its command, if it was not answered yet.
    fn call_of(&self, request: RequestId) -> Result<(&Client, u32), RequestEnded> {
        let client = self.clients.get(&request.client().slot());
        let client = client.filter(|it| it.endpoint == request.client());
        let client = client.ok_or(RequestEnded::NotWaiting)?;
        match &client.asks {
            Some(asks) if asks.number == request.number() => Ok((client, asks.ack_seq)),
            _ => Err(RequestEnded::NotWaiting),
        }
    }

    /// Queues a request of `from`, whose record exists.
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

    /// Removes the client in `slot` with everything of it that was not received.
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

    /// Notes that `event` was received. Returns where to acknowledge it.
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
