//! The calls of `/dev/dvk` that endpoints need, whoever answers them.

use std::time::Duration;

use super::message_buffer::MessageBuffer;
use crate::abi::ioctl::{DcUsr, ProcUsr};
use crate::abi::{Code, DcId, Endpoint};

/// Which way a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// Until it is received.
    Send,
    /// To one that waits for it, or not at all.
    Reply,
    /// Until it is answered: the answer takes its place.
    SendRec,
}

/// Who answers the calls: the kernel, or a test that plays it.
///
/// Those that are an endpoint's take it to be that of the calling thread. A call that succeeds gives a number that is not
/// negative; one that fails, a code.
pub(super) trait Driver: Send + Sync {
    /// Asks whether there is a DVS: the number of this node.
    fn dvs(&self) -> Result<i32, Code>;

    /// Describes a container.
    fn container(&self, dc: DcId) -> Result<DcUsr, Code>;

    /// Describes who is in a slot, or that nobody is.
    fn process(&self, dc: DcId, slot: i32) -> Result<ProcUsr, Code>;

    /// Binds the calling thread: the endpoint's number. One below zero comes as the code of that number.
    fn bind(&self, dc: DcId, endpoint: Endpoint) -> Result<i32, Code>;

    /// Gives up an endpoint.
    fn unbind(&self, dc: DcId, endpoint: Endpoint) -> Result<i32, Code>;

    /// Receives from anybody, and waits no longer than `limit`: then [`Code::EDVSTIMEDOUT`].
    fn receive(&self, buffer: &mut MessageBuffer, limit: Duration) -> Result<i32, Code>;

    /// Sends what is on `buffer`, and waits no longer than `limit`.
    fn send(
        &self,
        sending: Sending,
        to: Endpoint,
        buffer: &mut MessageBuffer,
        limit: Duration,
    ) -> Result<i32, Code>;

    /// Notifies another endpoint.
    fn notify(&self, to: Endpoint) -> Result<i32, Code>;

    /// Notifies an endpoint of this machine, which may be the caller's, in the name of the hardware. Any thread may.
    fn wake(&self, dc: DcId, endpoint: Endpoint) -> Result<i32, Code>;

    /// Copies from `address` in another's memory: how many bytes, or zero if it is on another node.
    fn copy_from(&self, from: Endpoint, address: u32, into: &mut [u8]) -> Result<i32, Code>;

    /// Copies to `address` in another's memory: how many bytes, or zero if it is on another node.
    fn copy_to(&self, to: Endpoint, address: u32, from: &[u8]) -> Result<i32, Code>;
}
