//! The checks of an incoming command in the kernel's order, and which failures the sender is told.

use super::super::ProcessAddress;
use super::super::layout::{Field, Frame};
use super::command;
use super::tables::{Reason, Remote};
use super::{Kernel, Outgoing};

/// Slots of the default container.
const SLOTS: std::ops::Range<i32> = -34..221;

/// Codes of acknowledgements.
const TRAP_DENIED: i32 = -110;
const DESTINATION_DIED: i32 = -109;
const MIGRATES: i32 = -332;
const REMOTE: i32 = -308;

/// What happens to a command that fails a check.
pub(super) enum Refusal {
    Lost(Reason),
    Told(i32),
}

impl Kernel {
    /// Checks `frame`. Proxies that bind unknown sources do so, and check again.
    pub(super) fn examine(&mut self, frame: &Frame) -> Result<(), Refusal> {
        let source = ProcessAddress::source(frame);
        self.examine_place(frame).map_err(Refusal::Lost)?;
        if let Err(reason) = self.examine_source(frame) {
            let unknown = matches!(reason, Reason::NotBound | Reason::NoNode);
            if !unknown || !self.autobind.takes(source.endpoint) {
                return Err(Refusal::Lost(reason));
            }
            self.remotes.insert(source, Remote::on(self.other));
        }
        self.examine_rights(frame)
    }

    fn examine_place(&self, frame: &Frame) -> Result<(), Reason> {
        let (source, destination) = (
            ProcessAddress::source(frame),
            ProcessAddress::destination(frame),
        );
        if self.ignored.contains(&frame.get(Field::Command)) {
            return Err(Reason::Ignored);
        }
        let container = self.containers.get(&source.dc);
        let container = container.ok_or(Reason::NoContainer)?;
        if !SLOTS.contains(&source.endpoint) || !SLOTS.contains(&destination.endpoint) {
            return Err(Reason::Range);
        }
        if !container.nodes.contains(&frame.get(Field::SourceNode)) {
            return Err(Reason::NoNodeOfContainer);
        }
        if frame.get(Field::DestinationNode) != self.id {
            return Err(Reason::OtherNode);
        }
        Ok(())
    }

    fn examine_source(&self, frame: &Frame) -> Result<(), Reason> {
        let source = ProcessAddress::source(frame);
        if self.processes.contains_key(&source) {
            return Err(Reason::Local);
        }
        let remote = self.remotes.get(&source).ok_or(Reason::NotBound)?;
        if remote.node != frame.get(Field::SourceNode) {
            return Err(Reason::NoNode);
        }
        Ok(())
    }

    fn examine_rights(&self, frame: &Frame) -> Result<(), Refusal> {
        let command = frame.get(Field::Command);
        let (source, destination) = (
            ProcessAddress::source(frame),
            ProcessAddress::destination(frame),
        );
        let remote = self.remotes.get(&source);
        let remote = remote.ok_or(Refusal::Lost(Reason::NotBound))?;
        if remote.denied_destinations.contains(&destination.endpoint) {
            return Err(Refusal::Told(TRAP_DENIED));
        }
        if remote.busy {
            return Err(Refusal::Lost(Reason::Enqueued));
        }
        if self.remotes.contains_key(&destination) {
            return Err(Refusal::Told(REMOTE));
        }
        let process = self.processes.get(&destination);
        let process = process.ok_or(Refusal::Told(DESTINATION_DIED))?;
        if process.migrates && command & command::ACK == 0 {
            return Err(Refusal::Told(MIGRATES));
        }
        if remote.denied_calls.contains(&command) {
            return Err(Refusal::Lost(Reason::BadCall));
        }
        Ok(())
    }

    /// Ends the process at `process_address`. Processes that wait for it are told, as for any
    /// message.
    pub(crate) fn exit(&mut self, process_address: ProcessAddress) -> Vec<Outgoing> {
        let process = self.processes.remove(&process_address);
        let queue = process.map(|it| it.queue).unwrap_or_default();
        let mut told: Vec<_> = queue
            .iter()
            .map(|frame| (ProcessAddress::source(frame), DESTINATION_DIED))
            .collect();
        for (&partner, remote) in &mut self.remotes {
            if remote.asks == Some(process_address) {
                remote.asks = None;
                told.push((partner, SOURCE_DIED));
            }
        }
        let acks = told.into_iter().map(|(partner, code)| {
            let ack = self.frame(command::SEND_ACK, process_address, partner.endpoint);
            Outgoing {
                frame: ack.with(Field::Result, code),
                busy: Some(partner),
            }
        });
        acks.collect()
    }
}

/// The code for a process whose partner ended before it replied.
const SOURCE_DIED: i32 = -108;
