//! A process at the fake kernel, which does what a test tells it.

use std::sync::Arc;
use std::time::Duration;

use super::{FakeKernel, Kind};
use crate::abi::{Code, Endpoint, Message};

/// A fake client process.
pub(in super::super) struct Client {
    pub(super) kernel: Arc<FakeKernel>,
    pub(in super::super) slot: i32,
}

impl Client {
    /// Sends a request to `to` without waiting for the answer.
    pub(in super::super) fn ask(&self, to: i32, message: &Message) -> Result<(), Code> {
        let asked = self
            .kernel
            .state
            .lock()
            .send(self.slot, to, message, Kind::SendRec);
        self.kernel.changed.notify_all();
        asked.map(drop)
    }

    /// Waits for the answer.
    pub(in super::super) fn answer(&self) -> Result<Message, Code> {
        self.kernel.wait(self.slot, Duration::from_secs(10))
    }

    /// Receives from any endpoint.
    pub(in super::super) fn receive(&self) -> Result<Message, Code> {
        let mut state = self.kernel.state.lock();
        if let Some(message) = state.take(self.slot) {
            self.kernel.changed.notify_all();
            return Ok(message);
        }
        state.processes.get_mut(&self.slot).unwrap().waits_for = Some(Endpoint::ANY);
        drop(state);
        self.answer()
    }

    /// Answers the thread that has called.
    pub(in super::super) fn reply(&self, to: i32, message: &Message) {
        let mut state = self.kernel.state.lock();
        let process = state.processes.get_mut(&to).unwrap();
        process.got = Some(Ok(*message));
        self.kernel.changed.notify_all();
    }

    /// Interrupts the process, which then waits for nothing.
    pub(in super::super) fn interrupt(&self) {
        let mut state = self.kernel.state.lock();
        let process = state.processes.get_mut(&self.slot).unwrap();
        process.waits_for = None;
        process.sending = false;
    }

    /// A copy of its memory.
    pub(in super::super) fn memory(&self) -> Vec<u8> {
        self.kernel.state.lock().processes[&self.slot]
            .memory
            .clone()
    }

    /// Ends the process.
    pub(in super::super) fn end(self) {
        self.kernel.state.lock().remove(self.slot);
        self.kernel.changed.notify_all();
    }
}
