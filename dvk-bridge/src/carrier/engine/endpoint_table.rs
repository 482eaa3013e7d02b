//! The endpoints that this process has bound on one carrier, and the carrier's peers.
//!
//! An endpoint belongs to one node while that node is connected: the same number at another node is
//! refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::config::{EngineConfig, PeerKind};
use super::endpoint_state::EndpointState;
use super::peer_transport::{PeerId, PeerTransport};
use crate::abi::{Code, Command, DcId, DcLimits, Endpoint, Header};
use crate::endpoint::Gone;

/// All bound endpoints of one carrier.
pub(crate) struct EndpointTable {
    config: EngineConfig,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Keyed by container and slot.
    entries: HashMap<(DcId, i32), Arc<EndpointState>>,
    transports: HashMap<PeerId, Arc<dyn PeerTransport>>,
    /// Configured peers of endpoints that have not sent anything yet.
    routes: HashMap<(DcId, i32), PeerId>,
}

impl EndpointTable {
    pub(crate) fn new(config: EngineConfig) -> Self {
        Self {
            config,
            state: Mutex::default(),
        }
    }

    /// Adds a peer that `transport` reaches.
    pub(crate) fn add_peer(&self, peer: PeerId, transport: Arc<dyn PeerTransport>) {
        self.state.lock().transports.insert(peer, transport);
    }

    /// Records that `peer` has `endpoint`.
    pub(crate) fn add_route(&self, dc: DcId, endpoint: Endpoint, peer: PeerId) {
        let mut state = self.state.lock();
        state.routes.insert((dc, endpoint.slot()), peer);
    }

    pub(super) fn exchange_limit(&self) -> Duration {
        self.config.exchange_limit
    }

    /// Checks that an endpoint can be bound. Returns the dimensions of its container.
    pub(super) fn dimensions(&self, dc: DcId, endpoint: Endpoint) -> Result<DcLimits, Code> {
        let limits = self.config.dcs.get(&dc).ok_or(Code::EDVSBADDCID)?;
        if !limits.contains(endpoint) {
            return Err(Code::EDVSBADRANGE);
        }
        if endpoint == Endpoint::HARDWARE || endpoint.generation() != 0 {
            return Err(Code::EDVSENDPOINT);
        }
        Ok(*limits)
    }

    /// Adds the state of `endpoint`.
    pub(super) fn open(
        &self,
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<Arc<EndpointState>, Code> {
        let limits = self.dimensions(dc, endpoint)?;
        let mut state = self.state.lock();
        let key = (dc, endpoint.slot());
        if state.entries.contains_key(&key) {
            return Err(Code::EDVSSLOTUSED);
        }
        let entry = Arc::new(EndpointState::new(
            dc,
            endpoint,
            name,
            limits,
            self.config.kind,
        ));
        state.entries.insert(key, entry.clone());
        Ok(entry)
    }

    /// Removes `entry` and tells the clients that wait for it.
    pub(super) fn close(&self, entry: &Arc<EndpointState>) {
        let key = (entry.dc, entry.endpoint.slot());
        let mut state = self.state.lock();
        if !state
            .entries
            .get(&key)
            .is_some_and(|it| Arc::ptr_eq(it, entry))
        {
            return;
        }
        state.entries.remove(&key);
        drop(state);
        for waiting in entry.close() {
            let Some(transport) = self.transport(waiting.route.peer) else {
                continue;
            };
            let command = if waiting.asks {
                Command::SNDREC_ACK
            } else {
                Command::SEND_ACK
            };
            let mut header = entry.header(command, waiting.endpoint);
            header.rcode = Code::EDVSSRCDIED.result();
            header.ack_seq = waiting.route.ack_seq;
            let channel = entry.channel(waiting.route.peer, waiting.endpoint, &transport);
            channel.acknowledge(header, &[]);
        }
        if self.config.kind == PeerKind::Switch {
            self.broadcast(&entry.header(Command::PROCUNBIND, Endpoint::NONE));
        }
    }

    /// Sends `header` to every connected peer.
    fn broadcast(&self, header: &Header) {
        let transports: Vec<_> = self.state.lock().transports.values().cloned().collect();
        for transport in transports {
            // A peer that is not connected learns it when it connects.
            let _ = transport.post(*header, &[]);
        }
    }

    /// Unbinds `endpoint`. Returns whether it was bound.
    pub(crate) fn release(&self, dc: DcId, endpoint: Endpoint) -> bool {
        let entry = self
            .state
            .lock()
            .entries
            .get(&(dc, endpoint.slot()))
            .cloned();
        let Some(entry) = entry else {
            return false;
        };
        self.close(&entry);
        true
    }

    pub(super) fn transport(&self, peer: PeerId) -> Option<Arc<dyn PeerTransport>> {
        self.state.lock().transports.get(&peer).cloned()
    }

    /// The peer that has `to`: where its last command came from, else the configured peer, else the
    /// only peer.
    pub(super) fn route(&self, entry: &EndpointState, to: Endpoint) -> Option<PeerId> {
        if let Some(peer) = entry.mailbox.peer_of(to) {
            return Some(peer);
        }
        let state = self.state.lock();
        if let Some(&peer) = state.routes.get(&(entry.dc, to.slot())) {
            return Some(peer);
        }
        let mut peers = state.transports.keys();
        let only = peers.next().copied();
        only.filter(|_| peers.next().is_none())
    }

    /// Handles a command of `peer`. Never waits.
    pub(crate) fn deliver(&self, peer: PeerId, header: &Header, payload: &[u8]) {
        let Some(transport) = self.transport(peer) else {
            return;
        };
        match self.receiver(header) {
            Ok(entry) => entry.deliver(peer, &transport, header, payload),
            Err(code) => {
                log::debug!(
                    "{} from {} to {} of container {}: {code}",
                    header.command,
                    header.src,
                    header.dst,
                    header.dc
                );
                if let Some(command) = header.command.failure() {
                    // Without a connection nobody waits for the answer.
                    let _ = transport.post(header.answer(command, code.result()), &[]);
                }
            }
        }
    }

    fn receiver(&self, header: &Header) -> Result<Arc<EndpointState>, Code> {
        let dc = DcId::new(header.dc).ok_or(Code::EDVSBADDCID)?;
        let limits = self.config.dcs.get(&dc).ok_or(Code::EDVSBADDCID)?;
        if !limits.contains(header.src) {
            return Err(Code::EDVSBADRANGE);
        }
        let state = self.state.lock();
        let entry = state.entries.get(&(dc, header.dst.slot()));
        let entry = entry.filter(|it| it.endpoint == header.dst);
        entry.cloned().ok_or(Code::EDVSDSTDIED)
    }

    /// `endpoint` is gone.
    pub(crate) fn partner_gone(&self, dc: DcId, endpoint: Endpoint, reason: Gone) {
        for entry in self.entries().iter().filter(|it| it.dc == dc) {
            entry.partner_gone(endpoint, reason);
        }
    }

    /// Fails the exchanges with `peer`, whose connection is lost. Its processes may still exist.
    pub(crate) fn interrupted(&self, peer: PeerId) {
        for entry in self.entries() {
            entry.interrupted(peer);
        }
    }

    /// `peer` is lost with all its processes.
    pub(crate) fn peer_lost(&self, peer: PeerId) {
        for entry in self.entries() {
            entry.interrupted(peer);
            entry.mailbox.peer_lost(peer);
        }
    }

    /// The bound endpoints: container, endpoint and name.
    pub(crate) fn bound(&self) -> Vec<(DcId, Endpoint, String)> {
        let entries = self.entries();
        let entries = entries.iter();
        entries
            .map(|entry| (entry.dc, entry.endpoint, entry.name.clone()))
            .collect()
    }

    /// Describes every endpoint.
    pub(crate) fn report(&self, to: &mut String) {
        let mut entries = self.entries();
        entries.sort_by_key(|entry| (entry.dc, entry.endpoint));
        for entry in entries {
            entry.report(self.config.kind, to);
        }
    }

    /// Each endpoint as an object.
    pub(crate) fn json(&self) -> Vec<Value> {
        let mut entries = self.entries();
        entries.sort_by_key(|entry| (entry.dc, entry.endpoint));
        entries.iter().map(|entry| entry.json()).collect()
    }

    fn entries(&self) -> Vec<Arc<EndpointState>> {
        self.state.lock().entries.values().cloned().collect()
    }
}
