//! A carrier's settings of the engine.

use std::collections::HashMap;
use std::time::Duration;

use crate::abi::{DcId, DcLimits, Endpoint};

/// The kind of peers that a carrier has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerKind {
    /// Nodes. An endpoint has one exchange at a time with each node.
    Nodes,
    /// The switch, which is told of every bind and unbind. An endpoint has one exchange at a time
    /// with each partner behind the switch.
    Switch,
}

impl PeerKind {
    /// Whether every command of a call or message carries its number in `c_ack_seq`, a field that
    /// DVK leaves to proxies.
    pub(super) fn has_ack_seq(self) -> bool {
        self == Self::Switch
    }

    /// The key that separates an endpoint's channels to the same peer.
    pub(super) fn channel(self, partner: Endpoint) -> i32 {
        match self {
            Self::Nodes => 0,
            Self::Switch => partner.slot(),
        }
    }
}

/// A carrier's settings for its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct EngineConfig {
    /// The kind of its peers.
    pub(crate) kind: PeerKind,
    /// Time limit for an acknowledgement.
    pub(crate) exchange_limit: Duration,
    /// The containers and their dimensions.
    pub(crate) dcs: HashMap<DcId, DcLimits>,
}
