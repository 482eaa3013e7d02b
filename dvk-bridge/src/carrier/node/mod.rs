//! This process as a node of a DVS. Proxies of real nodes, or other processes like this one, reach
//! its endpoints over TCP.
//!
//! ```text
//!   node L                                   node R
//!   listens at 3000 + R  <──── commands ──── writes
//!   writes               ───── commands ───> listens at 3000 + L
//! ```
//!
//! Each of the two connections carries commands one way. Each peer has two threads: one listens and
//! reads, the other connects and sends what could not be sent at once. Nothing is authenticated or
//! encrypted: a host that can send from a peer's address is the peer.

mod config;
mod connect;
mod host;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use gangplank_service::rate_limited;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use serde_json::{Value, json};

pub use config::{NodeConfig, NodeError, NodeLimits, PORT_BASE, PeerConfig};

use host::Host;

use super::engine::{EndpointTable, EngineConfig, EngineEndpoint, PeerId, PeerKind};
use super::stream::{Outbox, Traffic, proxy_command};
use crate::abi::{DcId, Endpoint, M3, Message};
use crate::endpoint::{BoundEndpoint, Carrier, EndpointError};
use crate::status::Report;

/// A running node. Dropping it ends the connections.
pub struct Node {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What a node's threads share.
struct Shared {
    config: NodeConfig,
    table: Arc<EndpointTable>,
    stopping: AtomicBool,
    /// Readable from the moment the node is to stop.
    stop: OwnedFd,
    peers: Vec<Arc<Peer>>,
}

/// A peer and its connections.
struct Peer {
    config: PeerConfig,
    host: Host,
    outbox: Arc<Outbox>,
    /// The address that it has connected from.
    incoming: Mutex<Option<SocketAddr>>,
    received: Mutex<Traffic>,
}

impl Peer {
    fn id(&self) -> PeerId {
        PeerId(self.config.id.raw())
    }

    /// Whether both connections are up.
    fn is_up(&self) -> bool {
        self.incoming.lock().is_some() && self.outbox.is_connected()
    }

    /// Logs once the second of the two connections is up.
    fn note_up(&self) {
        if self.is_up() {
            rate_limited!(info, "{self} is connected both ways");
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} ({})", self.config.id, self.config.host)
    }
}

impl Node {
    /// Starts the node. It listens for its peers when this returns, and connects to them as long as
    /// it lives.
    pub fn start(config: NodeConfig) -> Result<Self, NodeError> {
        config.check()?;
        let table = Arc::new(EndpointTable::new(EngineConfig {
            kind: PeerKind::Nodes,
            exchange_limit: config.limits.exchange,
            dcs: config.dcs.clone(),
        }));
        let mut peers = Vec::new();
        for peer in &config.peers {
            let thread = |error: rustix::io::Errno| NodeError::Thread {
                peer: peer.id,
                source: error.into(),
            };
            let outbox = Outbox::new(config.id, peer.id, peer.generation).map_err(thread)?;
            let outbox = Arc::new(outbox);
            let id = PeerId(peer.id.raw());
            table.add_peer(id, outbox.clone());
            for &(dc, endpoint) in &peer.endpoints {
                table.add_route(dc, endpoint, id);
            }
            peers.push(Arc::new(Peer {
                config: peer.clone(),
                host: Host::new(&peer.host),
                outbox,
                incoming: Mutex::default(),
                received: Mutex::default(),
            }));
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = stop.map_err(|error| NodeError::Thread {
            peer: config.id,
            source: error.into(),
        })?;
        let mut node = Self {
            shared: Arc::new(Shared {
                config,
                table,
                stopping: AtomicBool::new(false),
                stop,
                peers,
            }),
            threads: Vec::new(),
        };
        // If listening fails for one peer, dropping the node ends the threads of the others.
        for peer in node.shared.peers.clone() {
            node.start_peer(peer)?;
        }
        Ok(node)
    }

    fn start_peer(&mut self, peer: Arc<Peer>) -> Result<(), NodeError> {
        let listener = connect::listen_for(&self.shared.config, &peer.config)?;
        let id = peer.config.id;
        let start = |name: String, body: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name).spawn(body);
            thread.map_err(|source| NodeError::Thread { peer: id, source })
        };
        let (shared, reading) = (self.shared.clone(), peer.clone());
        self.threads.push(start(
            format!("node_read_{id}"),
            Box::new(move || reader::run(&shared, &reading, &listener)),
        )?);
        let shared = self.shared.clone();
        self.threads.push(start(
            format!("node_write_{id}"),
            Box::new(move || writer::run(&shared, &peer)),
        )?);
        Ok(())
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Asks a proxy that supports it to bind our endpoints.
    fn announce(&self, peer: &Peer) {
        if !peer.config.announce {
            return;
        }
        for (dc, endpoint, name) in self.table.bound() {
            announce(&self.config, peer, dc, endpoint, &name);
        }
    }
}

/// A message type between proxies: a request to bind an endpoint as a remote process.
const REMOTE_BIND: i32 = 7;

fn announce(config: &NodeConfig, peer: &Peer, dc: DcId, endpoint: Endpoint, name: &str) {
    let mut arm = M3 {
        i1: dc.raw(),
        i2: endpoint.raw(),
        p1: config.id.raw().unsigned_abs(),
        ..M3::default()
    };
    // The last byte stays zero.
    for (to, from) in arm.ca1.iter_mut().take(13).zip(name.bytes()) {
        *to = from;
    }
    let mut message = Message::new(REMOTE_BIND, &arm);
    message.source = Endpoint::from_raw(config.id.raw());
    // Without a connection, the endpoint is announced when there is one.
    let _ = peer.outbox.post_unanswered(proxy_command(message), &[]);
}

impl Carrier for Node {
    fn bind(
        &self,
        dc: DcId,
        endpoint: Endpoint,
        name: &str,
    ) -> Result<Arc<dyn BoundEndpoint>, EndpointError> {
        let bound = EngineEndpoint::new(self.shared.table.clone(), dc, endpoint, name)?;
        for peer in self.shared.peers.iter().filter(|it| it.config.announce) {
            announce(&self.shared.config, peer, dc, endpoint, name);
        }
        Ok(Arc::new(bound))
    }
}

impl Report for Node {
    fn report(&self, to: &mut String) {
        let config = &self.shared.config;
        to.push_str(&format!("node {} at {}\n", config.id, config.address));
        for peer in &self.shared.peers {
            let incoming = *peer.incoming.lock();
            let incoming =
                incoming.map_or("not connected".to_owned(), |it| format!("connected ({it})"));
            let outgoing = if peer.outbox.is_connected() {
                "connected"
            } else {
                "not connected"
            };
            to.push_str(&format!(
                "  {peer}, {}: from it {incoming}, {}; to it {outgoing}, {}\n",
                peer.config.generation,
                *peer.received.lock(),
                peer.outbox.counters()
            ));
        }
        self.shared.table.report(to);
    }

    fn json(&self) -> Value {
        let config = &self.shared.config;
        let peers = self.shared.peers.iter().map(|peer| {
            let incoming = *peer.incoming.lock();
            json!({
                "node": peer.config.id.raw(),
                "generation": peer.config.generation.to_string(),
                "connected_from": incoming.map(|from| from.to_string()),
                "connected_to": peer.outbox.is_connected(),
                "received": peer.received.lock().json(),
                "sent": peer.outbox.counters().json(),
            })
        });
        json!({
            "kind": "node",
            "node": config.id.raw(),
            "address": config.address.to_string(),
            "peers": peers.collect::<Vec<_>>(),
            "endpoints": self.shared.table.json(),
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // An eventfd whose counter is full wakes the threads as well.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            // The thread has logged why it ended.
            let _ = thread.join();
        }
        for peer in &self.shared.peers {
            self.shared.table.peer_lost(peer.id());
        }
    }
}
