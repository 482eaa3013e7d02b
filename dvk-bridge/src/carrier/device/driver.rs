//! The calls of `/dev/dvk` that endpoints need.

use std::time::Duration;

use super::message_buffer::MessageBuffer;
use crate::abi::ioctl::{DcUsr, ProcUsr};
use crate::abi::{Code, DcId, Endpoint};

/// How a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// Waits until the message is received.
    Send,
    /// Fails unless the destination waits for the message.
    Reply,
    /// Waits for the answer, which replaces the message.
    SendRec,
}

/// Carries out the calls: the kernel, or the fake kernel of the tests.
///
/// A call of an endpoint acts for the endpoint of the calling thread. A successful call returns a
/// number that is not negative, a failed one a code.
pub(super) trait Driver: Send + Sync {
    /// Returns the number of this node in the DVS.
    fn dvs(&self) -> Result<i32, Code>;

    /// Describes a container.
    fn container(&self, dc: DcId) -> Result<DcUsr, Code>;

    /// Describes the process in a slot, or an empty slot.
    fn process(&self, dc: DcId, slot: i32) -> Result<ProcUsr, Code>;

    /// Binds the calling thread and returns the endpoint's number. A negative number comes back as
    /// the code of that number.
    fn bind(&self, dc: DcId, endpoint: Endpoint) -> Result<i32, Code>;

    /// Unbinds an endpoint.
    fn unbind(&self, dc: DcId, endpoint: Endpoint) -> Result<i32, Code>;

    /// Receives from any endpoint. Fails with [`Code::EDVSTIMEDOUT`] after `limit`.
    fn receive(&self, buffer: &mut MessageBuffer, limit: Duration) -> Result<i32, Code>;

    /// Sends the message in `buffer` and waits up to `limit`.
    fn send(
        &self,
        sending: Sending,
        to: Endpoint,
        buffer: &mut MessageBuffer,
        limit: Duration,
    ) -> Result<i32, Code>;

    /// Notifies another endpoint.
    fn notify(&self, to: Endpoint) -> Result<i32, Code>;

    /// Notifies an endpoint of this machine in the name of the hardware, possibly the caller's own.
    /// Any thread may call it.
    fn wake(&self, dc: DcId, endpoint: Endpoint) -> Result<i32, Code>;

    /// Copies from `address` in another process's memory. Returns the number of bytes, or zero if
    /// the process is on another node.
    fn copy_from(&self, from: Endpoint, address: u32, into: &mut [u8]) -> Result<i32, Code>;

    /// Copies to `address` in another process's memory. Returns the number of bytes, or zero if the
    /// process is on another node.
    fn copy_to(&self, to: Endpoint, address: u32, from: &[u8]) -> Result<i32, Code>;
}
