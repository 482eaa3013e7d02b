//! The kernel: it handles commands of another node's proxy and calls of its own processes.

mod checks;
mod copies;
mod processes;
mod tables;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::layout::{Field, Frame, Layout};
use super::{Outcome, PeerSetup, ProcessAddress};
use checks::Refusal;
pub use tables::{Autobind, Lost, Reason};
use tables::{Container, Process, Remote};

/// Commands by number.
pub(crate) mod command {
    pub(crate) const NONE: i32 = 0;
    pub(crate) const SEND: i32 = 1;
    pub(crate) const NOTIFY: i32 = 2;
    pub(crate) const SENDREC: i32 = 3;
    pub(crate) const REPLY: i32 = 4;
    pub(crate) const COPYIN: i32 = 5;
    pub(crate) const COPYOUT: i32 = 6;
    pub(crate) const ACK: i32 = 0x2000;
    pub(crate) const SEND_ACK: i32 = SEND | ACK;
    pub(crate) const SENDREC_ACK: i32 = SENDREC | ACK;
    pub(crate) const COPYIN_ACK: i32 = COPYIN | ACK;
    pub(crate) const COPYOUT_DATA: i32 = COPYOUT | ACK;
}

/// Kinds of messages between proxies: a request, and its reply.
const REMOTE_BIND: i32 = 7;
const REMOTE_BIND_DONE: i32 = 0x1007;

/// The node's state.
pub(crate) struct Kernel {
    id: i32,
    other: i32,
    layout: Layout,
    autobind: Autobind,
    binds_when_told: bool,
    containers: BTreeMap<i32, Container>,
    processes: HashMap<ProcessAddress, Process>,
    /// Endpoints that are bound here to another node.
    remotes: HashMap<ProcessAddress, Remote>,
    /// The copy block of the last copy, which error acknowledgements repeat.
    stale: [i32; 6],
    pub(crate) ignored: Vec<i32>,
    pub(crate) lost: Vec<Lost>,
    pub(crate) received: Vec<Frame>,
    /// Whether the other node's connection and ours exist.
    pub(crate) connected: (bool, bool),
    /// The number of connections that the other node has made.
    pub(crate) connections: usize,
    /// Whether the other node has closed our connection.
    pub(crate) dropped: bool,
}

/// A frame to send, and the process whose descriptor is busy until it is sent.
pub(crate) struct Outgoing {
    pub(crate) frame: Frame,
    pub(crate) busy: Option<ProcessAddress>,
}

impl Outgoing {
    /// A command without a waiting descriptor.
    fn plain(frame: Frame) -> Self {
        Self { frame, busy: None }
    }
}

impl Kernel {
    pub(crate) fn new(setup: &PeerSetup) -> Self {
        let process_addresses = setup
            .servers
            .iter()
            .map(|&endpoint| ProcessAddress::from(endpoint));
        let remotes =
            process_addresses.map(|process_address| (process_address, Remote::on(setup.other)));
        let containers = [(0, Container::of(&[setup.id, setup.other]))];
        Self {
            id: setup.id,
            other: setup.other,
            layout: setup.layout,
            autobind: setup.autobind,
            binds_when_told: setup.binds_when_told,
            containers: containers.into(),
            processes: HashMap::new(),
            remotes: remotes.collect(),
            stale: [0x55; 6],
            ignored: Vec::new(),
            lost: Vec::new(),
            received: Vec::new(),
            connected: (false, false),
            connections: 0,
            dropped: false,
        }
    }

    /// A header from this node to the other.
    fn frame(&self, command: i32, source: ProcessAddress, destination: i32) -> Frame {
        Frame::new(self.layout)
            .with(Field::Command, command)
            .with(Field::Dc, source.dc)
            .with(Field::Source, source.endpoint)
            .with(Field::Destination, destination)
            .with(Field::SourceNode, self.id)
            .with(Field::DestinationNode, self.other)
    }

    /// Adds a container that nodes `nodes` are in.
    pub(crate) fn add_container(&mut self, dc: i32, nodes: &[i32]) {
        self.containers.insert(dc, Container::of(nodes));
    }

    /// RMT_BIND. Returns the reply.
    pub(crate) fn bind_remote(&mut self, process_address: ProcessAddress, node: i32) -> i32 {
        let Some(container) = self.containers.get(&process_address.dc) else {
            return -302;
        };
        if !container.nodes.contains(&node) {
            return -319;
        }
        if self.processes.contains_key(&process_address)
            || self.remotes.contains_key(&process_address)
        {
            return -337;
        }
        self.remotes.insert(process_address, Remote::on(node));
        process_address.endpoint
    }

    /// SETPRIV: the commands that a remote process may not send, and the processes that it may not
    /// address.
    pub(crate) fn deny(
        &mut self,
        process_address: ProcessAddress,
        calls: &[i32],
        destinations: &[i32],
    ) {
        let remote = self.remotes.get_mut(&process_address).expect("it is bound");
        remote.denied_calls = calls.iter().copied().collect::<BTreeSet<_>>();
        remote.denied_destinations = destinations.iter().copied().collect::<BTreeSet<_>>();
    }

    /// Frees the descriptor after the frame was sent.
    pub(crate) fn sent(&mut self, process_address: Option<ProcessAddress>) {
        if let Some(remote) =
            process_address.and_then(|process_address| self.remotes.get_mut(&process_address))
        {
            remote.busy = false;
        }
    }

    /// Whether the descriptor of a remote process has a command in it.
    pub(crate) fn is_busy(&self, process_address: ProcessAddress) -> bool {
        self.remotes
            .get(&process_address)
            .is_some_and(|remote| remote.busy)
    }

    /// PUT2LCL. Returns the frame to send for `frame`.
    pub(crate) fn put(&mut self, frame: Frame) -> Option<Outgoing> {
        self.received.push(frame.clone());
        let command = frame.get(Field::Command);
        if command == command::NONE {
            return self.proxys_own(&frame);
        }
        match self.examine(&frame) {
            Ok(()) => {}
            Err(Refusal::Lost(reason)) => {
                self.lose(&frame, reason);
                return None;
            }
            Err(Refusal::Told(code)) => return self.refuse(&frame, code),
        }
        match command {
            command::SEND | command::REPLY | command::SENDREC => self.deliver(frame),
            command::NOTIFY => None,
            command::COPYIN => Some(self.copy_in(&frame)),
            command::COPYOUT => self.copy_out(&frame),
            command::SEND_ACK | command::SENDREC_ACK => {
                self.acknowledged(&frame);
                None
            }
            command::COPYIN_ACK | command::COPYOUT_DATA => {
                self.copied(&frame);
                None
            }
            _ => {
                self.lose(&frame, Reason::BadRequest);
                None
            }
        }
    }

    /// Handles messages between proxies: a proxy that binds on request does so and replies.
    fn proxys_own(&mut self, frame: &Frame) -> Option<Outgoing> {
        let word = |index: usize| frame.word(frame.layout.message_at() + 4 * index);
        let (kind, dc, endpoint, node) = (word(1), word(2), word(3), word(4));
        if !self.binds_when_told || frame.get(Field::Dc) != -1 || kind != REMOTE_BIND {
            return None;
        }
        let result = self.bind_remote(ProcessAddress { dc, endpoint }, node);
        let mut answer = self.frame(
            command::NONE,
            ProcessAddress::nobodys(),
            ProcessAddress::nobodys().endpoint,
        );
        let message_at = answer.layout.message_at();
        for (index, value) in [self.id, REMOTE_BIND_DONE, result].into_iter().enumerate() {
            answer.set_word(message_at + 4 * index, value);
        }
        Some(Outgoing::plain(answer))
    }

    fn lose(&mut self, frame: &Frame, reason: Reason) {
        self.lost.push(Lost {
            command: frame.get(Field::Command),
            source: frame.get(Field::Source),
            reason,
        });
    }

    /// An error acknowledgement as the kernel makes it: SEND_ACK for every message, with the copy
    /// block of an earlier copy.
    fn refuse(&mut self, frame: &Frame, code: i32) -> Option<Outgoing> {
        let ack = match frame.get(Field::Command) {
            command::SEND | command::REPLY | command::SENDREC | command::NOTIFY => {
                command::SEND_ACK
            }
            command::COPYIN => command::COPYIN_ACK,
            command::COPYOUT => command::COPYOUT_DATA,
            _ => return None,
        };
        let stale = self.stale;
        Some(self.answer(frame, ack, code, stale))
    }

    /// An acknowledgement of `frame`. The descriptor of its source is busy until it is sent.
    fn answer(&mut self, frame: &Frame, ack: i32, code: i32, copy: [i32; 6]) -> Outgoing {
        let source = ProcessAddress::source(frame);
        if let Some(remote) = self.remotes.get_mut(&source) {
            remote.busy = true;
        }
        let answer = self.frame(ack, ProcessAddress::destination(frame), source.endpoint);
        let answer = answer.with(Field::Result, code);
        Outgoing {
            frame: if ack == command::SEND_ACK {
                answer
            } else {
                answer.with_copy(copy)
            },
            busy: Some(source),
        }
    }

    fn process(&mut self, process_address: ProcessAddress) -> &mut Process {
        self.processes
            .get_mut(&process_address)
            .expect("it is a process here")
    }

    /// What process `process_address`'s SENDREC has come to.
    pub(crate) fn outcome(&self, process_address: ProcessAddress) -> Outcome {
        let process = self.processes.get(&process_address);
        process.map_or(Outcome::Blocked, |it| it.outcome.clone())
    }
}
