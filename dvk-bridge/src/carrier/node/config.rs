//! What a node is told before it starts: who it is, whom it talks to, how long it waits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::abi::{DcId, DcLimits, Endpoint, Generation, NodeId};

/// First port of the proxies: a node listens for peer R at this and R, and connects to this and its own id.
pub const PORT_BASE: u16 = 3000;

/// A node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its id.
    pub id: NodeId,
    /// Address that it listens on and connects from. There is no authentication between nodes but that of addresses.
    pub address: IpAddr,
    /// First port of its own: [`PORT_BASE`] for every DVK.
    pub port_base: u16,
    /// The containers that it is in, and their dimensions.
    pub dcs: HashMap<DcId, DcLimits>,
    /// The nodes that it talks to. Nobody else is listened to.
    pub peers: Vec<PeerConfig>,
    /// How long everything may take.
    pub limits: NodeLimits,
}

/// A peer of a node.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Its id.
    pub id: NodeId,
    /// Its host, by name or address.
    pub host: String,
    /// First port of its own: [`PORT_BASE`] for every DVK.
    pub port_base: u16,
    /// Layout of what it sends and understands.
    pub generation: Generation,
    /// Endpoints that are known to be there before they have sent anything. Of a sole peer they need not be listed.
    pub endpoints: Vec<(DcId, Endpoint)>,
    /// Whether it is a proxy that can be told to bind our endpoints (multi_proxy), and so is told.
    pub announce: bool,
}

/// How long a node waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLimits {
    /// For an acknowledgement.
    pub exchange: Duration,
    /// For the rest of a command that has begun to come, and for a peer to take what we send.
    pub transfer: Duration,
    /// For a connection to be made.
    pub connect: Duration,
    /// Until the next try, after a connection was not made or was lost.
    pub retry: Duration,
    /// Until a sign of life is sent, when nothing else was.
    pub hello: Duration,
}

impl Default for NodeLimits {
    fn default() -> Self {
        Self {
            exchange: Duration::from_secs(30),
            transfer: Duration::from_secs(30),
            connect: Duration::from_secs(10),
            retry: Duration::from_secs(2),
            // A third of what the least patient of the proxies allows.
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

    /// Checks what does not go together: several peers of one id, or of ours.
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
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A peer with the node's own id.
    #[error("node {0} cannot be its own peer")]
    OwnId(NodeId),
    /// Two peers of one id.
    #[error("node {0} is listed twice")]
    SameId(NodeId),
    /// No room for the nodes' ports.
    #[error("there are no 32 ports from {0} on")]
    Ports(u16),
    /// A peer's port cannot be listened on.
    #[error("cannot listen for node {peer} at {address} port {port}")]
    Listen {
        /// For whom.
        peer: NodeId,
        /// Where.
        address: IpAddr,
        /// Where there.
        port: u16,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A thread cannot be had.
    #[error("cannot start a thread for node {peer}")]
    Thread {
        /// For whom.
        peer: NodeId,
        /// Why not.
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
    fn peers_are_different_from_each_other_and_from_us() {
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
