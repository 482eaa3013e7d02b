//! A node's configuration: its id, its peers and its time limits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::abi::{DcId, DcLimits, Endpoint, Generation, NodeId};

/// First port of the proxies. A node listens for peer R at this port plus R, and connects to the
/// peer's first port plus its own id.
pub const PORT_BASE: u16 = 3000;

/// A node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its id.
    pub id: NodeId,
    /// Address to listen on and to connect from. Nodes authenticate each other by address alone.
    pub address: IpAddr,
    /// First of its own ports: [`PORT_BASE`] for every DVK.
    pub port_base: u16,
    /// The containers that it is in, and their dimensions.
    pub dcs: HashMap<DcId, DcLimits>,
    /// The nodes that it talks to. It accepts no others.
    pub peers: Vec<PeerConfig>,
    /// The time limits.
    pub limits: NodeLimits,
}

/// A peer of a node.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Its id.
    pub id: NodeId,
    /// Its host, by name or address.
    pub host: String,
    /// First of its own ports: [`PORT_BASE`] for every DVK.
    pub port_base: u16,
    /// The layout of its messages.
    pub generation: Generation,
    /// Endpoints that are known to be there before they have sent anything. They need not be listed
    /// if there is one peer only.
    pub endpoints: Vec<(DcId, Endpoint)>,
    /// Whether it is a proxy that binds our endpoints on request (multi_proxy).
    pub announce: bool,
}

/// The time limits of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLimits {
    /// For an acknowledgement.
    pub exchange: Duration,
    /// For the rest of a command that has begun to arrive, and for a peer to read what was sent.
    pub transfer: Duration,
    /// For a connection attempt.
    pub connect: Duration,
    /// Wait before the next connection attempt.
    pub retry: Duration,
    /// Interval of the hello commands on an idle connection.
    pub hello: Duration,
}

impl Default for NodeLimits {
    fn default() -> Self {
        Self {
            exchange: Duration::from_secs(30),
            transfer: Duration::from_secs(30),
            connect: Duration::from_secs(10),
            retry: Duration::from_secs(2),
            // A third of the shortest time limit among the proxies.
            hello: Duration::from_secs(10),
        }
    }
}

impl NodeConfig {
    /// Node `id` in container 0 of the usual dimensions, on the loopback address, without peers.
    pub fn new(id: NodeId) -> Self {
        let dcs = DcId::new(0).map(|dc| (dc, DcLimits::USUAL));
        Self {
            id,
            address: IpAddr::from([127, 0, 0, 1]),
            port_base: PORT_BASE,
            dcs: dcs.into_iter().collect(),
            peers: Vec::new(),
            limits: NodeLimits::default(),
        }
    }

    /// Checks that no peer has the id of another, or of the node itself.
    pub fn check(&self) -> Result<(), NodeError> {
        for (index, peer) in self.peers.iter().enumerate() {
            if peer.id == self.id {
                return Err(NodeError::OwnId(peer.id));
            }
            let earlier = self.peers.iter().take(index);
            if earlier.clone().any(|other| other.id == peer.id) {
                return Err(NodeError::SameId(peer.id));
            }
            for base in [self.port_base, peer.port_base] {
                if base.checked_add(31).is_none() {
                    return Err(NodeError::Ports(base));
                }
            }
        }
        Ok(())
    }
}

impl PeerConfig {
    /// Node `id` at `host`, a DVK of the current generation.
    pub fn new(id: NodeId, host: &str) -> Self {
        Self {
            id,
            host: host.to_owned(),
            port_base: PORT_BASE,
            generation: Generation::default(),
            endpoints: Vec::new(),
            announce: false,
        }
    }

    /// Whether the host is an address, and no name that would have to be resolved.
    pub(crate) fn has_address(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A peer has the node's own id.
    #[error("node {0} cannot be its own peer")]
    OwnId(NodeId),
    /// Two peers have the same id.
    #[error("node {0} is listed twice")]
    SameId(NodeId),
    /// The 32 ports of the nodes do not fit.
    #[error("there are no 32 ports from {0} on")]
    Ports(u16),
    /// The node cannot listen on a peer's port.
    #[error("cannot listen for node {peer} at {address} port {port}")]
    Listen {
        /// The peer.
        peer: NodeId,
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
    /// A thread or descriptor could not be created.
    #[error("cannot start a thread for node {peer}")]
    Thread {
        /// The peer.
        peer: NodeId,
        /// The error of the system.
        #[source]
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: i32) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn peer_ids_are_unique_and_not_our_own() {
        let mut config = NodeConfig::new(node(1));
        config.peers = vec![PeerConfig::new(node(0), "a"), PeerConfig::new(node(2), "b")];
        assert!(config.check().is_ok());
        config.peers.push(PeerConfig::new(node(0), "c"));
        assert!(matches!(config.check(), Err(NodeError::SameId(_))));
        config.peers = vec![PeerConfig::new(node(1), "a")];
        assert!(matches!(config.check(), Err(NodeError::OwnId(_))));
    }

    #[test]
    fn ports_have_to_exist() {
        let mut config = NodeConfig::new(node(1));
        config.port_base = 65_505;
        config.peers = vec![PeerConfig::new(node(0), "a")];
        assert!(matches!(config.check(), Err(NodeError::Ports(65_505))));
    }
}
