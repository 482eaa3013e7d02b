//! How a server elsewhere is reached, as typed and as carriers want it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::abi::{DcId, DcLimits, Endpoint, NodeId};
use crate::carrier::local::LocalConfig;
use crate::carrier::node::{NodeConfig, PeerConfig};
use crate::cli_types::{GenerationName, PeerName, Ports, parse_node};

/// Heading of the options that say how the server is reached.
pub(crate) const SERVER: &str = "Server";

/// The options that say how a server is reached: from this program as a node to the server's, or by a switch.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerAddrArgs {
    /// The server's node: its host, and its id in the DVS
    #[arg(long, value_name = "HOST:ID", required_unless_present = "switch", requires = "node", help_heading = SERVER)]
    pub peer: Option<PeerName>,

    /// The id that this program has as a node: the server's configuration has it as a peer's, and this machine's DVS nowhere
    #[arg(long, value_name = "ID", requires = "peer", value_parser = parse_node, help_heading = SERVER)]
    pub node: Option<NodeId>,

    /// The socket of a switch on this host, at which the server is (rhs_carrier local), instead of a node
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["peer", "node", "address", "ports", "generation"], help_heading = SERVER)]
    pub switch: Option<PathBuf>,

    /// Number of a user that the switch may run as, beside root and this program's own
    #[arg(long, value_name = "UID", requires = "switch", conflicts_with = "peer", help_heading = SERVER)]
    pub switch_uid: Option<u32>,

    /// The address to listen on, and to connect from. Whoever sends from the server's address is believed to be it
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), help_heading = SERVER)]
    pub address: IpAddr,

    /// The first of the ports that this node listens on, and then the server's; every real DVS has 3000
    #[arg(long, value_name = "PORT[:PORT]", default_value = "3000", help_heading = SERVER)]
    pub ports: Ports,

    /// The layout of the server's messages
    #[arg(long, value_name = "NAME", default_value = "current", help_heading = SERVER)]
    pub generation: GenerationName,
}

/// How the server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerAddr<'a> {
    /// From this machine as a node to the server's.
    Node(NodeId, &'a PeerName),
    /// By the switch at this socket.
    Switch(&'a Path),
}

impl ServerAddrArgs {
    /// How the server is reached; none where the command line was not clap's.
    pub(crate) fn server_addr(&self) -> Option<ServerAddr<'_>> {
        match (&self.switch, self.node, &self.peer) {
            (Some(socket), _, _) => Some(ServerAddr::Switch(socket)),
            (None, Some(node), Some(peer)) => Some(ServerAddr::Node(node, peer)),
            _ => None,
        }
    }

    /// A program at the switch at `socket`, with these containers.
    pub(crate) fn at_switch(&self, socket: &Path, dcs: HashMap<DcId, DcLimits>) -> LocalConfig {
        LocalConfig {
            dcs,
            switch_uid: self.switch_uid,
            ..LocalConfig::new(socket.to_owned())
        }
    }

    /// The node `node` of these containers, which knows `endpoint` of container `dc` to be at `server`.
    pub(crate) fn as_node(
        &self,
        node: NodeId,
        server: &PeerName,
        (dc, endpoint): (DcId, Endpoint),
        dcs: HashMap<DcId, DcLimits>,
    ) -> NodeConfig {
        let mut peer = PeerConfig::new(server.node, &server.host);
        peer.port_base = self.ports.peer;
        peer.generation = self.generation.into();
        peer.endpoints = vec![(dc, endpoint)];
        let mut config = NodeConfig::new(node);
        config.address = self.address;
        config.port_base = self.ports.own;
        config.peers = vec![peer];
        config.dcs = dcs;
        config
    }
}
