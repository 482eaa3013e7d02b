//! The kernel's tables: containers, processes, descriptors of remote processes, lost commands.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::layout::Frame;
use super::super::{Outcome, ProcessAddress};

/// A container.
pub(super) struct Container {
    /// Its nodes.
    pub(super) nodes: BTreeSet<i32>,
}

impl Container {
    pub(super) fn of(nodes: &[i32]) -> Self {
        let nodes = nodes.iter().copied().collect();
        Self { nodes }
    }
}

/// A process of this node.
pub(super) struct Process {
    pub(super) memory: BTreeMap<u32, Vec<u8>>,
    /// The process that it has asked and waits for.
    pub(super) waits_for: Option<i32>,
    pub(super) outcome: Outcome,
    /// Messages that it has not received. The descriptors of their sources are busy until it does.
    pub(super) queue: VecDeque<Frame>,
    /// Whether it is migrating.
    pub(super) migrates: bool,
    /// Its own exchange in progress.
    pub(super) exchange: Option<Exchange>,
}

impl Process {
    /// A process that waits for nothing.
    pub(super) fn idle() -> Self {
        Self {
            memory: BTreeMap::new(),
            waits_for: None,
            outcome: Outcome::Blocked,
            queue: VecDeque::new(),
            migrates: false,
            exchange: None,
        }
    }
}

/// A process's command to a remote one, until it is acknowledged.
pub(super) struct Exchange {
    /// The command number of the acknowledgement.
    pub(super) ack: i32,
    /// The partner's endpoint.
    pub(super) partner: i32,
    /// The result and the payload, once acknowledged.
    pub(super) done: Option<(i32, Vec<u8>)>,
}

/// A descriptor of a remote process.
pub(super) struct Remote {
    pub(super) node: i32,
    /// Whether it has a command, from a proxy or queued on a process.
    pub(super) busy: bool,
    /// The process here that it has asked and waits for.
    pub(super) asks: Option<ProcessAddress>,
    pub(super) denied_calls: BTreeSet<i32>,
    pub(super) denied_destinations: BTreeSet<i32>,
}

impl Remote {
    pub(super) fn on(node: i32) -> Self {
        Self {
            node,
            busy: false,
            asks: None,
            denied_calls: BTreeSet::new(),
            denied_destinations: BTreeSet::new(),
        }
    }
}

/// The sources that a proxy binds by itself when they are not bound, or bound to another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Autobind {
    /// None.
    #[default]
    Never,
    /// Endpoints above 64, as tcp_proxy.
    Tcp,
    /// Endpoints above the container's system processes, 30 by default, as multi_proxy with the
    /// option.
    Multi,
}

impl Autobind {
    /// Whether the proxy binds `endpoint`.
    pub(super) fn takes(self, endpoint: i32) -> bool {
        match self {
            Self::Never => false,
            Self::Tcp => endpoint > 64,
            Self::Multi => endpoint > 30,
        }
    }
}

/// A lost command: neither executed nor acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its number.
    pub command: i32,
    /// Its source.
    pub source: i32,
    /// Why.
    pub reason: Reason,
}

/// Why a command was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The container does not exist here.
    NoContainer,
    /// The slot is out of range.
    Range,
    /// The other node is not in that container.
    NoNodeOfContainer,
    /// It is for another node.
    OtherNode,
    /// Its source is not bound here.
    NotBound,
    /// Its source is on another node, by what is bound here.
    NoNode,
    /// Its source is a process of this node.
    Local,
    /// Its source's descriptor is busy with an earlier command.
    Enqueued,
    /// Its source may not send this command.
    BadCall,
    /// The copy failed in a way that the kernel does not report.
    Copy,
    /// The command is unknown.
    BadRequest,
    /// The test ignores it.
    Ignored,
}
