//! What the engine needs of a connection to a peer.

use std::time::Instant;

use crate::abi::Header;

/// The other end of a connection: a node or the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PeerId(pub(crate) i32);

/// The peer is not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotConnected;

/// A connection to a peer, which may be down at the moment.
pub(crate) trait PeerTransport: Send + Sync {
    /// Queues a command without waiting. Commands are sent in the order of the calls, each followed
    /// by its payload. The transport fills in nodes, length, process id and time.
    fn post(&self, header: Header, payload: &[u8]) -> Result<(), NotConnected>;

    /// Waits for a connection until `deadline`. Returns whether there is one.
    fn wait(&self, deadline: Instant) -> bool;
}
