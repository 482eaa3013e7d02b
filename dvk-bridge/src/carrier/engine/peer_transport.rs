//! The way out: what the engine needs of a connection to a peer.

use std::time::Instant;

use crate::abi::Header;

/// Whoever is at the other end of a connection: a node, or the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerId(pub(crate) i32);

/// There is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotConnected;

/// A connection to a peer, or the place where there will be one.
pub(crate) trait PeerTransport: Send + Sync {
    /// Hands a command over to be sent, without waiting for anything. All commands go in the order in which they are handed
    /// over, each with its payload behind it. Nodes, length, process and time are filled in on the way.
    fn post(&self, header: Header, payload: &[u8]) -> Result<(), NotConnected>;

    /// Waits for a connection, at most until `deadline`: whether there is one.
    fn wait(&self, deadline: Instant) -> bool;
}
