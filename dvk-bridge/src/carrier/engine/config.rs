//! What a carrier decides about the engine that it uses.

use std::collections::HashMap;
use std::time::Duration;

use crate::abi::{DcId, DcLimits, Endpoint};

/// What a carrier's peers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerKind {
    /// Nodes: each endpoint has one exchange at a time with each.
    Nodes,
    /// The switch, which is told what is bound and what is not any more: each endpoint has one exchange at a time with each
    /// partner behind it.
    Switch,
}

impl PeerKind {
    /// Whether all that belongs to a question or a message says its mark in `c_ack_seq`, which DVK leaves to proxies.
    pub(super) fn has_ack_seq(self) -> bool {
        self == Self::Switch
    }

    /// What tells an endpoint's lanes to the same peer apart.
    pub(super) fn channel(self, partner: Endpoint) -> i32 {
        match self {
            Self::Nodes => 0,
            Self::Switch => partner.slot(),
        }
    }
}

/// What a carrier decides about its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct EngineConfig {
    /// What its peers are.
    pub(crate) kind: PeerKind,
    /// How long a peer may take for an acknowledgement.
    pub(crate) exchange_limit: Duration,
    /// The containers, and their dimensions.
    pub(crate) dcs: HashMap<DcId, DcLimits>,
}
