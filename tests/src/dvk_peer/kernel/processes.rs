//! Messages of the node's processes: request, wait, receive, reply.

use std::collections::BTreeMap;

use super::super::layout::{Field, Frame};
use super::super::{Outcome, ProcessAddress};
use super::tables::{Exchange, Process};
use super::{Kernel, Outgoing, command};

impl Kernel {
    /// SENDREC: the request. A process with a queued reply, which came while it did not wait, gets
    /// that.
    pub(crate) fn ask(
        &mut self,
        client: ProcessAddress,
        server: i32,
        message: &[u8],
        memory: BTreeMap<u32, Vec<u8>>,
    ) -> (Frame, Option<Outgoing>) {
        let process = self.processes.entry(client).or_insert_with(Process::idle);
        process.memory = memory;
        process.waits_for = Some(server);
        process.outcome = Outcome::Blocked;
        let queued = process.queue.iter();
        let queued = queued
            .map(|it| it.get(Field::Source))
            .position(|it| it == server);
        let late = queued.and_then(|at| process.queue.remove(at));
        let late = late.and_then(|frame| self.deliver(frame));
        let request = self.frame(command::SENDREC, client, server);
        (request.with_message(message), late)
    }

    pub(crate) fn memory(&self, client: ProcessAddress, address: u32) -> Vec<u8> {
        self.processes[&client].memory[&address].clone()
    }

    pub(crate) fn interrupt(&mut self, client: ProcessAddress) {
        if let Some(process) = self.processes.get_mut(&client) {
            process.waits_for = None;
        }
    }

    /// Adds a process that waits for no other.
    pub(crate) fn bind(&mut self, process_address: ProcessAddress) {
        self.processes.insert(process_address, Process::idle());
    }

    /// The process at `seat` begins to move to another node, or has changed its mind.
    pub(crate) fn set_migrating(&mut self, process_address: ProcessAddress, migrates: bool) {
        self.process(process_address).migrates = migrates;
    }

    /// Delivers a message to a process: it is received if the process waits for its source, else
    /// queued and acknowledged on receipt, which an interrupted process may never do.
    pub(super) fn deliver(&mut self, frame: Frame) -> Option<Outgoing> {
        let asks = frame.get(Field::Command) == command::SENDREC;
        if !asks && self.finish(&frame, Outcome::Reply(frame.message().to_vec())) {
            return Some(self.answer(&frame, command::SEND_ACK, 0, [0; 6]));
        }
        if let Some(remote) = self.remotes.get_mut(&ProcessAddress::source(&frame)) {
            remote.busy = true;
        }
        self.process(ProcessAddress::destination(&frame))
            .queue
            .push_back(frame);
        None
    }

    /// RECEIVE(ANY). Returns the message, and the acknowledgement if the sender does not wait for a
    /// reply.
    pub(crate) fn receive(
        &mut self,
        process_address: ProcessAddress,
    ) -> Option<(Frame, Option<Outgoing>)> {
        let frame = self.process(process_address).queue.pop_front()?;
        let source = ProcessAddress::source(&frame);
        if frame.get(Field::Command) != command::SENDREC {
            let ack = self.answer(&frame, command::SEND_ACK, 0, [0; 6]);
            return Some((frame, Some(ack)));
        }
        if let Some(remote) = self.remotes.get_mut(&source) {
            remote.busy = false;
            remote.asks = Some(process_address);
        }
        Some((frame, None))
    }

    /// REPLY, SEND or NOTIFY of a process here. Returns the frame to send.
    pub(crate) fn send(
        &mut self,
        process_address: ProcessAddress,
        to: i32,
        command: i32,
        message: &[u8],
    ) -> Frame {
        let partner = ProcessAddress {
            endpoint: to,
            ..process_address
        };
        if let Some(remote) = self.remotes.get_mut(&partner)
            && command != command::NOTIFY
        {
            remote.asks = None;
        }
        self.process(process_address).exchange = Some(Exchange {
            ack: command::SEND_ACK,
            partner: to,
            done: None,
        });
        let mut frame = self
            .frame(command, process_address, to)
            .with_message(message);
        let source_at = frame.layout.message_at();
        frame.set_word(source_at, process_address.endpoint);
        frame.with(
            Field::Result,
            if command == command::NOTIFY { -1 } else { 0 },
        )
    }

    /// What the acknowledgement of the exchange of `seat` was, once it has come.
    pub(crate) fn exchanged(&mut self, process_address: ProcessAddress) -> Option<(i32, Vec<u8>)> {
        let exchange = &mut self.process(process_address).exchange;
        let done = exchange.as_mut()?.done.take()?;
        *exchange = None;
        Some(done)
    }

    /// Handles the acknowledgement of a message. A process that waits for a reply ignores one of
    /// SEND.
    pub(super) fn acknowledged(&mut self, frame: &Frame) {
        let code = frame.get(Field::Result);
        if frame.get(Field::Command) == command::SENDREC_ACK {
            self.finish(frame, Outcome::Failed(code));
            return;
        }
        self.complete(frame, code, Vec::new());
    }

    /// Ends the exchange that `frame` acknowledges, if there is one.
    pub(super) fn complete(&mut self, frame: &Frame, code: i32, bytes: Vec<u8>) {
        let process = self.process(ProcessAddress::destination(frame));
        let (command, source) = (frame.get(Field::Command), frame.get(Field::Source));
        if let Some(exchange) = &mut process.exchange
            && (exchange.ack, exchange.partner) == (command, source)
        {
            exchange.done = Some((code, bytes));
        }
    }

    /// Ends the wait of the process that `frame` is for, if it waits for its source.
    pub(super) fn finish(&mut self, frame: &Frame, outcome: Outcome) -> bool {
        let process = self.processes.get_mut(&ProcessAddress::destination(frame));
        let Some(process) = process.filter(|it| it.waits_for == Some(frame.get(Field::Source)))
        else {
            return false;
        };
        process.waits_for = None;
        process.outcome = outcome;
        true
    }
}
