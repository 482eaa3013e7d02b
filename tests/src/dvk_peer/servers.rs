//! Processes of the played node that serve: they receive, copy and answer, as the original server does.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::kernel::command;
use super::{Frame, LIMIT, Peer, Seat};

/// What the kernel says when a partner's node does not answer.
const TIMED_OUT: i32 = -61;

impl Peer {
    /// A process that asks nobody.
    pub fn bind(&self, seat: impl Into<Seat>) {
        self.shared.lock().bind(seat.into());
    }

    /// The process ends, and whoever waits for it is told.
    pub fn exit(&self, seat: impl Into<Seat>) {
        let told = self.shared.lock().exit(seat.into());
        self.proxies.put(told);
    }

    /// The process begins to move to another node, or has changed its mind.
    pub fn set_migrating(&self, seat: impl Into<Seat>, migrates: bool) {
        self.shared.lock().set_migrating(seat.into(), migrates);
    }

    /// RECEIVE(ANY) of process `seat`.
    pub fn receive(&self, seat: impl Into<Seat>) -> Frame {
        let seat = seat.into();
        let deadline = Instant::now() + LIMIT;
        let mut kernel = self.shared.lock();
        loop {
            if let Some((frame, ack)) = kernel.receive(seat) {
                self.proxies.put(ack);
                return frame;
            }
            kernel = self.shared.wait(kernel, deadline, "receive a message");
        }
    }

    /// REPLY of process `seat`: what the acknowledgement says.
    pub fn reply(&self, seat: impl Into<Seat>, to: i32, message: &[u8]) -> i32 {
        self.message(seat.into(), to, command::REPLY, message)
    }

    /// SEND of process `seat`: what the acknowledgement says.
    pub fn send_message(&self, seat: impl Into<Seat>, to: i32, message: &[u8]) -> i32 {
        self.message(seat.into(), to, command::SEND, message)
    }

    /// NOTIFY of process `seat`.
    pub fn notify(&self, seat: impl Into<Seat>, to: i32) {
        let seat = seat.into();
        let message = vec![0; self.shared.setup.layout.message()];
        let frame = self.shared.lock().send(seat, to, command::NOTIFY, &message);
        self.send(&frame);
    }

    fn message(&self, seat: Seat, to: i32, command: i32, message: &[u8]) -> i32 {
        let frame = self.shared.lock().send(seat, to, command, message);
        self.send(&frame);
        self.exchanged(seat).map_or(TIMED_OUT, |(code, _)| code)
    }

    /// VCOPY of process `seat` from the memory of `from`: the bytes, or the code.
    pub fn copy_from(
        &self,
        seat: impl Into<Seat>,
        from: i32,
        address: u32,
        bytes: i32,
    ) -> Result<Vec<u8>, i32> {
        let seat = seat.into();
        let frame = self.shared.lock().ask_for_copy(seat, from, address, bytes);
        self.send(&frame);
        match self.exchanged(seat) {
            Some((0.., bytes)) => Ok(bytes),
            Some((code, _)) => Err(code),
            None => Err(TIMED_OUT),
        }
    }

    /// VCOPY of process `seat` to the memory of `to`: how much, or the code.
    pub fn copy_to(
        &self,
        seat: impl Into<Seat>,
        to: i32,
        address: u32,
        bytes: &[u8],
    ) -> Result<i32, i32> {
        let seat = seat.into();
        let frame = self.shared.lock().copy(seat, to, address, bytes);
        self.send(&frame);
        match self.exchanged(seat) {
            Some((code @ 0.., _)) => Ok(code),
            Some((code, _)) => Err(code),
            None => Err(TIMED_OUT),
        }
    }

    /// The acknowledgement that process `seat` waits for; nothing if it does not come within the kernel's limit.
    fn exchanged(&self, seat: Seat) -> Option<(i32, Vec<u8>)> {
        let deadline = Instant::now() + self.shared.setup.exchange;
        let mut kernel = self.shared.lock();
        loop {
            if let Some(done) = kernel.exchanged(seat) {
                return Some(done);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return None;
            }
            let waited = self.shared.changed.wait_timeout(kernel, left);
            kernel = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
