//! The address of a server elsewhere, from the command line to the carriers.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::abi::{DcId, DcLimits, Endpoint, NodeId};
use crate::carrier::local::LocalConfig;
use crate::carrier::node::{NodeConfig, PeerConfig};
use crate::cli_types::{GenerationName, PeerName, Ports, parse_node};

/// Help heading of the options for the server's address.
pub(crate) const SERVER: &str = "Server";

/// The options for the server's address: a node that this program connects to as a node, or a
/// switch.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerAddrArgs {
    /// The server's node: its host, and its id in the DVS
    #[arg(
        long,
        value_name = "HOST:ID",
        required_unless_present = "switch",
        requires = "node",
        help_heading = SERVER
    )]
    pub peer: Option<PeerName>,

    /// The node id of this program; the server's configuration lists it as a peer, and this
    /// machine's DVS does not use it
    #[arg(
        long,
        value_name = "ID",
        requires = "peer",
        value_parser = parse_node,
        help_heading = SERVER
    )]
    pub node: Option<NodeId>,

    /// The socket of a switch on this host that the server uses (rhs_carrier local), instead of a
    /// node
    #[arg(
        long,
        value_name = "SOCKET",
        conflicts_with_all = ["peer", "node", "address", "ports", "generation"],
        help_heading = SERVER
    )]
    pub switch: Option<PathBuf>,

    /// Id of a user that the switch may run as, besides root and this program's own user
    #[arg(
        long,
        value_name = "UID",
        requires = "switch",
        conflicts_with = "peer",
        help_heading = SERVER
    )]
    pub switch_uid: Option<u32>,

    /// The address to listen on and to connect from. Any sender at the server's address counts as
    /// the server
    #[arg(
        long,
        value_name = "IP",
        default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST),
        help_heading = SERVER
    )]
    pub address: IpAddr,

    /// The first port of this node, and the server's; a real DVS always has 3000
    #[arg(long, value_name = "PORT[:PORT]", default_value = "3000", help_heading = SERVER)]
    pub ports: Ports,

    /// The layout of the server's messages
    #[arg(long, value_name = "NAME", default_value = "current", help_heading = SERVER)]
    pub generation: GenerationName,
}

/// The address of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerAddr<'a> {
    /// The server's node, with the node id of this program.
    Node(NodeId, &'a PeerName),
    /// The socket of a switch.
    Switch(&'a Path),
}

impl ServerAddrArgs {
    /// The server's address. `None` if clap did not check the command line.
    pub(crate) fn server_addr(&self) -> Option<ServerAddr<'_>> {
        match (&self.switch, self.node, &self.peer) {
            (Some(socket), _, _) => Some(ServerAddr::Switch(socket)),
            (None, Some(node), Some(peer)) => Some(ServerAddr::Node(node, peer)),
            _ => None,
        }
    }

    /// The configuration for the switch at `socket`, with these containers.
    pub(crate) fn at_switch(&self, socket: &Path, dcs: HashMap<DcId, DcLimits>) -> LocalConfig {
        LocalConfig {
            dcs,
            switch_uid: self.switch_uid,
            ..LocalConfig::new(socket.to_owned())
        }
    }

    /// The configuration of node `node` in these containers, whose peer `server` has `endpoint` of
    /// container `dc`.
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
