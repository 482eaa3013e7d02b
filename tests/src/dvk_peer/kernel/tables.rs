//! What the kernel keeps: containers, processes, descriptors of processes elsewhere, and what was
//! lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::layout::Frame;
use super::super::{Outcome, ProcessAddress};

/// A container.
pub(super) struct Container {
    /// The nodes that are in it.
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
    /// Whom it asks, and waits for.
    pub(super) waits_for: Option<i32>,
    pub(super) outcome: Outcome,
    /// Messages that it has not received: their sources' descriptors are busy until it does.
    pub(super) queue: VecDeque<Frame>,
    /// It is on its way to another node.
    pub(super) migrates: bool,
    /// The exchange of its own that it waits for.
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

/// A process's command to one elsewhere, until it is acknowledged.
pub(super) struct Exchange {
    /// The acknowledgement's number.
    pub(super) ack: i32,
    /// Whose.
    pub(super) partner: i32,
    /// It has come: the result, and what came along.
    pub(super) done: Option<(i32, Vec<u8>)>,
}

/// A descriptor of a process elsewhere.
pub(super) struct Remote {
    pub(super) node: i32,
    /// It has a command in it: of a proxy, or queued on a process.
    pub(super) busy: bool,
    /// The process here that it waits for, having asked it.
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

/// Which sources a proxy binds by itself when they are not bound, or on another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Autobind {
    /// None.
    #[default]
    Never,
    /// Those above 64: tcp_proxy.
    Tcp,
    /// Those above the container's system processes, 30 in the usual one: multi_proxy, where it is
    /// told to.
    Multi,
}

impl Autobind {
    /// Whether `endpoint` is such a one.
    pub(super) fn takes(self, endpoint: i32) -> bool {
        match self {
            Self::Never => false,
            Self::Tcp => endpoint > 64,
            Self::Multi => endpoint > 30,
        }
    }
}

/// A command that was lost: neither obeyed nor acknowledged.
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
    /// There is no such container here.
    NoContainer,
    /// No container has such a slot.
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
    /// Its source's descriptor has an earlier command.
    Enqueued,
    /// Its source may not call that.
    BadCall,
    /// The copy was not possible in a way that is not told.
    Copy,
    /// Nobody understands it.
    BadRequest,
    /// The test wants it lost.
    Ignored,
}
