//! All endpoints that this process has bound on one carrier, and the peers that it reaches by it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::desk::Desk;
use super::line::{Line, PeerId};
use super::sync::lock;
use crate::abi::{Code, Command, DcId, DcLimits, Endpoint, Header};
use crate::endpoint::Gone;

/// What a carrier's peers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nodes: each endpoint has one exchange at a time with each.
    Nodes,
    /// The switch, which is told what is bound and what is not any more: each endpoint has one exchange at a time with each
    /// partner behind it.
    Switch,
}

impl Kind {
    /// Whether all that belongs to a question or a message says its mark in `c_ack_seq`, which DVK leaves to proxies.
    pub(super) fn says_marks(self) -> bool {
        self == Self::Switch
    }

    /// What tells an endpoint's lanes to the same peer apart.
    pub(super) fn lane(self, partner: Endpoint) -> i32 {
        match self {
            Self::Nodes => 0,
            Self::Switch => partner.slot(),
        }
    }
}

/// What a carrier decides about its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    /// What its peers are.
    pub(crate) kind: Kind,
    /// How long a peer may take for an acknowledgement.
    pub(crate) exchange_limit: Duration,
    /// The containers, and their dimensions.
    pub(crate) dcs: HashMap<DcId, DcLimits>,
}

/// The station.
pub(crate) struct Station {
    tuning: Tuning,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By container and slot.
    desks: HashMap<(DcId, i32), Arc<Desk>>,
    lines: HashMap<PeerId, Arc<dyn Line>>,
    /// Where endpoints are that nothing came from yet.
    routes: HashMap<(DcId, i32), PeerId>,
}

impl Station {
    pub(crate) fn new(tuning: Tuning) -> Self {
        Self {
            tuning,
            state: Mutex::default(),
        }
    }

    /// Adds a peer, to which `line` leads.
    pub(crate) fn add_peer(&self, peer: PeerId, line: Arc<dyn Line>) {
        lock(&self.state).lines.insert(peer, line);
    }

    /// Says that `peer` has `endpoint`.
    pub(crate) fn add_route(&self, dc: DcId, endpoint: Endpoint, peer: PeerId) {
        let mut state = lock(&self.state);
        state.routes.insert((dc, endpoint.slot()), peer);
    }

    pub(super) fn exchange_limit(&self) -> Duration {
        self.tuning.exchange_limit
    }

    /// Whether an endpoint can be bound, and the dimensions of its container if so.
    pub(super) fn dimensions(&self, dc: DcId, endpoint: Endpoint) -> Result<DcLimits, Code> {
        let limits = self.tuning.dcs.get(&dc).ok_or(Code::EDVSBADDCID)?;
        if !limits.contains(endpoint) {
            return Err(Code::EDVSBADRANGE);
        }
        if endpoint == Endpoint::HARDWARE || endpoint.generation() != 0 {
            return Err(Code::EDVSENDPOINT);
        }
        Ok(*limits)
    }

    /// Adds a desk for `endpoint`.
    pub(super) fn open(&self, dc: DcId, endpoint: Endpoint, name: &str) -> Result<Arc<Desk>, Code> {
        let limits = self.dimensions(dc, endpoint)?;
        let mut state = lock(&self.state);
        let key = (dc, endpoint.slot());
        if state.desks.contains_key(&key) {
            return Err(Code::EDVSSLOTUSED);
        }
        let desk = Arc::new(Desk::new(dc, endpoint, name, limits, self.tuning.kind));
        state.desks.insert(key, desk.clone());
        Ok(desk)
    }

    /// Removes `desk`: who waits for it is told.
    pub(super) fn close(&self, desk: &Arc<Desk>) {
        let key = (desk.dc, desk.endpoint.slot());
        let mut state = lock(&self.state);
        if !state
            .desks
            .get(&key)
            .is_some_and(|it| Arc::ptr_eq(it, desk))
        {
            return;
        }
        state.desks.remove(&key);
        drop(state);
        for waiting in desk.close() {
            let Some(line) = self.line(waiting.way.peer) else {
                continue;
            };
            let command = if waiting.asks {
                Command::SNDREC_ACK
            } else {
                Command::SEND_ACK
            };
            let mut header = desk.header(command, waiting.endpoint);
            header.rcode = Code::EDVSSRCDIED.result();
            header.ack_seq = waiting.way.mark;
            let lane = desk.lane(waiting.way.peer, waiting.endpoint, &line);
            lane.acknowledge(header, &[]);
        }
        if self.tuning.kind == Kind::Switch {
            self.tell_all(&desk.header(Command::PROCUNBIND, Endpoint::NONE));
        }
    }

    /// Hands `header` to every peer that is connected.
    fn tell_all(&self, header: &Header) {
        let lines: Vec<_> = lock(&self.state).lines.values().cloned().collect();
        for line in lines {
            // Those who are not connected learn by that.
            let _ = line.post(*header, &[]);
        }
    }

    /// Closes the desk of `endpoint`; whether there was one.
    pub(crate) fn give_up(&self, dc: DcId, endpoint: Endpoint) -> bool {
        let desk = lock(&self.state).desks.get(&(dc, endpoint.slot())).cloned();
        let Some(desk) = desk else {
            return false;
        };
        self.close(&desk);
        true
    }

    pub(super) fn line(&self, peer: PeerId) -> Option<Arc<dyn Line>> {
        lock(&self.state).lines.get(&peer).cloned()
    }

    /// By which peer `to` is reached from `desk`: whence it came, or by configuration, or the only one there is.
    pub(super) fn route(&self, desk: &Desk, to: Endpoint) -> Option<PeerId> {
        if let Some(peer) = desk.mailbox.peer_of(to) {
            return Some(peer);
        }
        let state = lock(&self.state);
        if let Some(&peer) = state.routes.get(&(desk.dc, to.slot())) {
            return Some(peer);
        }
        let mut peers = state.lines.keys();
        let only = peers.next().copied();
        only.filter(|_| peers.next().is_none())
    }

    /// Takes a command of `peer`. Never waits.
    pub(crate) fn deliver(&self, peer: PeerId, header: &Header, payload: &[u8]) {
        let Some(line) = self.line(peer) else {
            return;
        };
        match self.receiver(header) {
            Ok(desk) => desk.deliver(peer, &line, header, payload),
            Err(code) => {
                log::debug!(
                    "{} from {} to {} of container {}: {code}",
                    header.command,
                    header.src,
                    header.dst,
                    header.dc
                );
                if let Some(command) = header.command.failure() {
                    // Without a connection nobody waits for it any more.
                    let _ = line.post(header.answer(command, code.result()), &[]);
                }
            }
        }
    }

    fn receiver(&self, header: &Header) -> Result<Arc<Desk>, Code> {
        let dc = DcId::new(header.dc).ok_or(Code::EDVSBADDCID)?;
        let limits = self.tuning.dcs.get(&dc).ok_or(Code::EDVSBADDCID)?;
        if !limits.contains(header.src) {
            return Err(Code::EDVSBADRANGE);
        }
        let state = lock(&self.state);
        let desk = state.desks.get(&(dc, header.dst.slot()));
        let desk = desk.filter(|it| it.endpoint == header.dst);
        desk.cloned().ok_or(Code::EDVSDSTDIED)
    }

    /// `endpoint` has gone.
    pub(crate) fn partner_gone(&self, dc: DcId, endpoint: Endpoint, reason: Gone) {
        for desk in self.desks().iter().filter(|it| it.dc == dc) {
            desk.partner_gone(endpoint, reason);
        }
    }

    /// What goes on with `peer` fails, since the connection to it was lost. Those it has may still be there.
    pub(crate) fn interrupted(&self, peer: PeerId) {
        for desk in self.desks() {
            desk.interrupted(peer);
        }
    }

    /// `peer` is lost, and with it all it has.
    pub(crate) fn peer_lost(&self, peer: PeerId) {
        for desk in self.desks() {
            desk.interrupted(peer);
            desk.mailbox.peer_lost(peer);
        }
    }

    /// What is bound: containers, endpoints, names.
    pub(crate) fn bound(&self) -> Vec<(DcId, Endpoint, String)> {
        let desks = self.desks();
        let desks = desks.iter();
        desks
            .map(|desk| (desk.dc, desk.endpoint, desk.name.clone()))
            .collect()
    }

    /// Describes every endpoint.
    pub(crate) fn report(&self, to: &mut String) {
        let mut desks = self.desks();
        desks.sort_by_key(|desk| (desk.dc, desk.endpoint));
        for desk in desks {
            desk.report(self.tuning.kind, to);
        }
    }

    fn desks(&self) -> Vec<Arc<Desk>> {
        lock(&self.state).desks.values().cloned().collect()
    }
}
