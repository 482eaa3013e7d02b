//! Server processes of the emulated node: they receive, copy and reply as the original server does.

use std::time::{Duration, Instant};

use super::kernel::command;
use super::{Frame, LIMIT, Peer, ProcessAddress};

/// The kernel's code when a partner's node does not answer.
const TIMED_OUT: i32 = -61;

impl Peer {
    /// Adds a process that waits for no other.
    pub fn bind(&self, process_address: impl Into<ProcessAddress>) {
        self.shared.lock().bind(process_address.into());
    }

    /// Ends the process. Processes that wait for it are told.
    pub fn exit(&self, process_address: impl Into<ProcessAddress>) {
        let told = self.shared.lock().exit(process_address.into());
        self.proxies.put(told);
    }

    /// Starts or cancels the migration of the process to another node.
    pub fn set_migrating(&self, process_address: impl Into<ProcessAddress>, migrates: bool) {
        self.shared
            .lock()
            .set_migrating(process_address.into(), migrates);
    }

    /// RECEIVE(ANY) of process `process_address`.
    pub fn receive(&self, process_address: impl Into<ProcessAddress>) -> Frame {
        let process_address = process_address.into();
        let deadline = Instant::now() + LIMIT;
        let mut kernel = self.shared.lock();
        loop {
            if let Some((frame, ack)) = kernel.receive(process_address) {
                self.proxies.put(ack);
                return frame;
            }
            kernel = self.shared.wait(kernel, deadline, "receive a message");
        }
    }

    /// REPLY of process `process_address`: what the acknowledgement says.
    pub fn reply(
        &self,
        process_address: impl Into<ProcessAddress>,
        to: i32,
        message: &[u8],
    ) -> i32 {
        self.message(process_address.into(), to, command::REPLY, message)
    }

    /// SEND of process `process_address`: what the acknowledgement says.
    pub fn send_message(
        &self,
        process_address: impl Into<ProcessAddress>,
        to: i32,
        message: &[u8],
    ) -> i32 {
        self.message(process_address.into(), to, command::SEND, message)
    }

    /// NOTIFY of process `process_address`.
    pub fn notify(&self, process_address: impl Into<ProcessAddress>, to: i32) {
        let process_address = process_address.into();
        let message = vec![0; self.shared.setup.layout.message()];
        let frame = self
            .shared
            .lock()
            .send(process_address, to, command::NOTIFY, &message);
        self.send(&frame);
    }

    fn message(
        &self,
        process_address: ProcessAddress,
        to: i32,
        command: i32,
        message: &[u8],
    ) -> i32 {
        let frame = self
            .shared
            .lock()
            .send(process_address, to, command, message);
        self.send(&frame);
        self.exchanged(process_address)
            .map_or(TIMED_OUT, |(code, _)| code)
    }

    /// VCOPY of process `process_address` from the memory of `from`: the bytes, or the code.
    pub fn copy_from(
        &self,
        process_address: impl Into<ProcessAddress>,
        from: i32,
        address: u32,
        bytes: i32,
    ) -> Result<Vec<u8>, i32> {
        let process_address = process_address.into();
        let frame = self
            .shared
            .lock()
            .ask_for_copy(process_address, from, address, bytes);
        self.send(&frame);
        match self.exchanged(process_address) {
            Some((0.., bytes)) => Ok(bytes),
            Some((code, _)) => Err(code),
            None => Err(TIMED_OUT),
        }
    }

    /// VCOPY of process `process_address` to the memory of `to`: how much, or the code.
    pub fn copy_to(
        &self,
        process_address: impl Into<ProcessAddress>,
        to: i32,
        address: u32,
        bytes: &[u8],
    ) -> Result<i32, i32> {
        let process_address = process_address.into();
        let frame = self.shared.lock().copy(process_address, to, address, bytes);
        self.send(&frame);
        match self.exchanged(process_address) {
            Some((code @ 0.., _)) => Ok(code),
            Some((code, _)) => Err(code),
            None => Err(TIMED_OUT),
        }
    }

    /// The acknowledgement that process `process_address` waits for; nothing if it does not come
    /// within the kernel's limit.
    fn exchanged(&self, process_address: ProcessAddress) -> Option<(i32, Vec<u8>)> {
        let deadline = Instant::now() + self.shared.setup.exchange;
        let mut kernel = self.shared.lock();
        loop {
            if let Some(done) = kernel.exchanged(process_address) {
                return Some(done);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return None;
            }
            self.shared.changed.wait_for(&mut kernel, left);
        }
    }
}
