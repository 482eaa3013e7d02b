//! What the kernel does with a command that another node's proxy brings.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::layout::{Field, Frame, Layout};
use super::{Outcome, PeerSetup};

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
}

/// Slots of the usual container.
const SLOTS: std::ops::Range<i32> = -34..221;

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
    /// Wrong container, node or slot.
    Range,
    /// Its source is not bound here.
    NotBound,
    /// Its source is on another node, by what is bound here.
    NoNode,
    /// Its source's descriptor has an earlier command.
    Enqueued,
    /// The copy was not possible in a way that is not told.
    Copy,
    /// Nobody understands it.
    BadRequest,
    /// The test wants it lost.
    Ignored,
}

/// A process of this node.
struct Process {
    memory: BTreeMap<u32, Vec<u8>>,
    /// Whom it asks, and waits for.
    waits_for: Option<i32>,
    outcome: Outcome,
}

/// The node's state.
pub(crate) struct Kernel {
    id: i32,
    other: i32,
    layout: Layout,
    processes: HashMap<i32, Process>,
    /// Endpoints of the other node that are bound here.
    remotes: Vec<i32>,
    /// Those whose descriptor has a command in it: of a proxy, or queued on a process.
    busy: HashSet<i32>,
    /// The copy block of the last copy: error acknowledgements have it.
    stale: [i32; 6],
    pub(crate) ignored: Vec<i32>,
    pub(crate) lost: Vec<Lost>,
    pub(crate) received: Vec<Frame>,
    /// The other node's connection to here, and ours to there.
    pub(crate) connected: (bool, bool),
    /// Ours was closed by the other node.
    pub(crate) dropped: bool,
}

/// What goes out for a command, and whose descriptor is busy until it has.
pub(crate) struct Answer {
    pub(crate) frame: Frame,
    pub(crate) busy: i32,
}

impl Kernel {
    pub(crate) fn new(setup: &PeerSetup) -> Self {
        Self {
            id: setup.id,
            other: setup.other,
            layout: setup.layout,
            processes: HashMap::new(),
            remotes: setup.servers.clone(),
            busy: HashSet::new(),
            stale: [0x55; 6],
            ignored: Vec::new(),
            lost: Vec::new(),
            received: Vec::new(),
            connected: (false, false),
            dropped: false,
        }
    }

    /// A header from here to there.
    fn frame(&self, command: i32, source: i32, destination: i32) -> Frame {
        Frame::new(self.layout)
            .with(Field::Command, command)
            .with(Field::Source, source)
            .with(Field::Destination, destination)
            .with(Field::SourceNode, self.id)
            .with(Field::DestinationNode, self.other)
    }

    pub(crate) fn ask(
        &mut self,
        client: i32,
        server: i32,
        message: &[u8],
        memory: BTreeMap<u32, Vec<u8>>,
    ) -> Frame {
        let process = Process {
            memory,
            waits_for: Some(server),
            outcome: Outcome::Blocked,
        };
        self.processes.insert(client, process);
        self.frame(command::SENDREC, client, server)
            .with_message(message)
    }

    pub(crate) fn outcome(&self, client: i32) -> Outcome {
        self.processes
            .get(&client)
            .map_or(Outcome::Blocked, |it| it.outcome.clone())
    }

    pub(crate) fn memory(&self, client: i32, address: u32) -> Vec<u8> {
        self.processes[&client].memory[&address].clone()
    }

    pub(crate) fn interrupt(&mut self, client: i32) {
        if let Some(process) = self.processes.get_mut(&client) {
            process.waits_for = None;
        }
    }

    /// An acknowledgement has left: the descriptor is free again.
    pub(crate) fn sent(&mut self, remote: i32) {
        self.busy.remove(&remote);
    }

    /// PUT2LCL: what goes out for `frame`.
    pub(crate) fn put(&mut self, frame: Frame) -> Option<Answer> {
        self.received.push(frame.clone());
        let command = frame.get(Field::Command);
        if command == command::NONE {
            return None;
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
            command::SEND | command::REPLY => self.deliver(&frame),
            command::NOTIFY => None,
            command::COPYIN => Some(self.copy_in(&frame)),
            command::COPYOUT => self.copy_out(&frame),
            // A kernel whose process waits in SENDREC can do nothing with an acknowledgement of SEND.
            0x2001 => None,
            0x2003 => {
                let code = frame.get(Field::Result);
                self.finish(&frame, Outcome::Failed(code));
                None
            }
            _ => {
                self.lose(&frame, Reason::BadRequest);
                None
            }
        }
    }

    fn lose(&mut self, frame: &Frame, reason: Reason) {
        self.lost.push(Lost {
            command: frame.get(Field::Command),
            source: frame.get(Field::Source),
            reason,
        });
    }

    /// The checks in the kernel's order.
    fn examine(&self, frame: &Frame) -> Result<(), Refusal> {
        let (source, destination) = (frame.get(Field::Source), frame.get(Field::Destination));
        if self.ignored.contains(&frame.get(Field::Command)) {
            return Err(Refusal::Lost(Reason::Ignored));
        }
        let here = frame.get(Field::Dc) == 0
            && SLOTS.contains(&source)
            && SLOTS.contains(&destination)
            && frame.get(Field::DestinationNode) == self.id;
        if !here {
            return Err(Refusal::Lost(Reason::Range));
        }
        if !self.remotes.contains(&source) {
            return Err(Refusal::Lost(Reason::NotBound));
        }
        if frame.get(Field::SourceNode) != self.other || self.processes.contains_key(&source) {
            return Err(Refusal::Lost(Reason::NoNode));
        }
        if self.busy.contains(&source) {
            return Err(Refusal::Lost(Reason::Enqueued));
        }
        if !self.processes.contains_key(&destination) {
            return Err(Refusal::Told(-109));
        }
        Ok(())
    }

    /// An error acknowledgement, as the kernel makes it: SEND_ACK for every message, the copy block of some earlier copy.
    fn refuse(&mut self, frame: &Frame, code: i32) -> Option<Answer> {
        let ack = match frame.get(Field::Command) {
            command::SEND | command::REPLY | command::SENDREC | command::NOTIFY => command::SEND,
            command::COPYIN => command::COPYIN,
            command::COPYOUT => command::COPYOUT,
            _ => return None,
        };
        let stale = self.stale;
        Some(self.answer(frame, ack | command::ACK, code, stale))
    }

    fn answer(&mut self, frame: &Frame, ack: i32, code: i32, copy: [i32; 6]) -> Answer {
        let busy = frame.get(Field::Source);
        self.busy.insert(busy);
        let answer = self.frame(ack, frame.get(Field::Destination), busy);
        let answer = answer.with(Field::Result, code);
        let is_copy = ack != command::SEND | command::ACK;
        Answer {
            frame: if is_copy {
                answer.with_copy(copy)
            } else {
                answer
            },
            busy,
        }
    }

    /// A message for a process: received if it waits for it, else queued on it and acknowledged when it receives, which a
    /// process that was interrupted never does.
    fn deliver(&mut self, frame: &Frame) -> Option<Answer> {
        let source = frame.get(Field::Source);
        if !self.finish(frame, Outcome::Reply(frame.message().to_vec())) {
            self.busy.insert(source);
            return None;
        }
        Some(self.answer(frame, command::SEND | command::ACK, 0, [0; 6]))
    }

    /// Ends the wait of the process that `frame` is for, if it waits for its source.
    fn finish(&mut self, frame: &Frame, outcome: Outcome) -> bool {
        let process = self.processes.get_mut(&frame.get(Field::Destination));
        let Some(process) = process.filter(|it| it.waits_for == Some(frame.get(Field::Source)))
        else {
            return false;
        };
        process.waits_for = None;
        process.outcome = outcome;
        true
    }

    fn copy_in(&mut self, frame: &Frame) -> Answer {
        let copy = frame.copy();
        let code = self.copy_code(frame, copy[4], |memory| {
            memory.copy_from_slice(&frame.payload)
        });
        let ack = command::COPYIN | command::ACK;
        if code < 0 {
            let stale = self.stale;
            return self.answer(frame, ack, code, stale);
        }
        self.stale = copy;
        self.answer(frame, ack, copy[5], copy)
    }

    fn copy_out(&mut self, frame: &Frame) -> Option<Answer> {
        let copy = frame.copy();
        let in_order = copy[0] == frame.get(Field::Destination) && (1..=65_536).contains(&copy[5]);
        if !in_order {
            self.lose(frame, Reason::Copy);
            return None;
        }
        let mut data = Vec::new();
        let code = self.copy_code(frame, copy[3], |memory| data.extend_from_slice(memory));
        match code {
            // A process that runs is an error that the handler keeps to itself.
            -324 => {
                self.lose(frame, Reason::Copy);
                None
            }
            0 => {
                self.stale = copy;
                let answer = self.answer(frame, command::COPYOUT | command::ACK, 0, copy);
                Some(Answer {
                    frame: answer.frame.with_payload(&data),
                    ..answer
                })
            }
            code => {
                let stale = self.stale;
                Some(self.answer(frame, command::COPYOUT | command::ACK, code, stale))
            }
        }
    }

    /// Gives the bytes that a copy is about to `done`, or says why there are none.
    fn copy_code(&mut self, frame: &Frame, address: i32, done: impl FnOnce(&mut [u8])) -> i32 {
        let length = usize::try_from(frame.copy()[5]).unwrap_or(usize::MAX);
        let process = self.processes.get_mut(&frame.get(Field::Destination));
        let Some(process) = process.filter(|it| it.waits_for == Some(frame.get(Field::Source)))
        else {
            return -324;
        };
        let address = address.cast_unsigned();
        let below = process.memory.range_mut(..=address).next_back();
        let found = below.and_then(|(&start, bytes)| {
            let from = usize::try_from(address - start).ok()?;
            bytes.get_mut(from..from.checked_add(length)?)
        });
        match found {
            Some(bytes) => {
                done(bytes);
                0
            }
            None => -14,
        }
    }
}

enum Refusal {
    Lost(Reason),
    Told(i32),
}
