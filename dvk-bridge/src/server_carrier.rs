//! The carrier to a server elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use crate::abi::{DcId, DcLimits, Endpoint};
use crate::carrier::local::{Local, LocalError};
use crate::carrier::node::{Node, NodeConfig, NodeError};
use crate::endpoint::Carrier;
use crate::server_addr::{ServerAddr, ServerAddrArgs};
use crate::status::Report;

/// Why there is no carrier to a server.
#[derive(Debug, thiserror::Error)]
pub enum ServerCarrierError {
    /// This process cannot be a node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The switch cannot be used.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The command line names no server.
    #[error("no server is given: use --peer and --node, or --switch")]
    NoServer,
}

/// The carrier to the server that a command line names.
pub(crate) enum ServerCarrier {
    Node(Arc<Node>),
    Switch(Arc<Local>),
}

impl ServerCarrier {
    /// The node that the program becomes, if it becomes one. `server` is the server's container and
    /// endpoint there.
    pub(crate) fn node(
        args: &ServerAddrArgs,
        server: (DcId, Endpoint),
        dcs: HashMap<DcId, DcLimits>,
    ) -> Option<NodeConfig> {
        match args.server_addr()? {
            ServerAddr::Node(node, peer) => Some(args.as_node(node, peer, server, dcs)),
            ServerAddr::Switch(_) => None,
        }
    }

    /// Starts the carrier, as [`ServerCarrier::node`] where the program becomes a node.
    pub(crate) fn start(
        args: &ServerAddrArgs,
        server: (DcId, Endpoint),
        dcs: HashMap<DcId, DcLimits>,
    ) -> Result<Self, ServerCarrierError> {
        Ok(
            match args.server_addr().ok_or(ServerCarrierError::NoServer)? {
                ServerAddr::Switch(socket) => {
                    Self::Switch(Arc::new(Local::start(args.at_switch(socket, dcs))?))
                }
                ServerAddr::Node(node, peer) => {
                    let config = args.as_node(node, peer, server, dcs);
                    Self::Node(Arc::new(Node::start(config)?))
                }
            },
        )
    }

    pub(crate) fn carrier(&self) -> Arc<dyn Carrier> {
        match self {
            Self::Node(node) => node.clone(),
            Self::Switch(local) => local.clone(),
        }
    }

    pub(crate) fn report(&self) -> Arc<dyn Report> {
        match self {
            Self::Node(node) => node.clone(),
            Self::Switch(local) => local.clone(),
        }
    }

    /// The server, for the log.
    pub(crate) fn name(args: &ServerAddrArgs) -> String {
        match args.server_addr() {
            Some(ServerAddr::Node(_, peer)) => format!("node {} at {}", peer.node, peer.host),
            Some(ServerAddr::Switch(socket)) => format!("the switch at {}", socket.display()),
            None => String::new(),
        }
    }
}
