//! The vhost-user messages that virtio-fs uses.

use std::os::fd::BorrowedFd;
use std::path::Path;

use vmm_sys_util::eventfd::EventFd;

use super::Result;
use crate::message::ProtocolFeatures;

/// A region of guest memory for SET_MEM_TABLE. Its user address is the guest physical address.
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    /// Guest physical address of its first byte.
    pub guest_address: u64,
    /// Length, in bytes.
    pub len: u64,
    /// The file it is mapped from.
    pub file: BorrowedFd<'a>,
    /// Offset of its first byte in the file.
    pub mmap_offset: u64,
}

/// Guest physical addresses of a ring's parts (virtio 1.2, 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring, which the driver writes.
    pub available: u64,
    /// Used ring, which the device writes.
    pub used: u64,
}

/// Carries messages to a daemon, and waits for each reply up to a deadline.
///
/// Each method but the first two is the message of its name (vhost-user, "Front-end message
/// types"), and fails by an [`super::Error`].
#[allow(
    clippy::missing_errors_doc,
    reason = "every method fails in the same ways, see above"
)]
pub trait Messages {
    /// Path of the daemon's socket, for error messages.
    fn daemon(&self) -> &Path;
    /// Sends nothing: another process agreed on `features` over this connection, and was told
    /// `max_rings` by GET_QUEUE_NUM, if it asked.
    fn resume(&mut self, features: ProtocolFeatures, max_rings: Option<u64>);
    /// `SET_OWNER`, once per connection.
    fn set_owner(&mut self) -> Result<()>;
    /// `GET_FEATURES`.
    fn features(&mut self) -> Result<u64>;
    /// `SET_FEATURES`.
    fn set_features(&mut self, features: u64) -> Result<()>;
    /// `GET_PROTOCOL_FEATURES`.
    fn protocol_features(&mut self) -> Result<ProtocolFeatures>;
    /// `SET_PROTOCOL_FEATURES`. With REPLY_ACK, every later message asks for an acknowledgement.
    fn set_protocol_features(&mut self, features: ProtocolFeatures) -> Result<()>;
    /// `GET_QUEUE_NUM`.
    fn queue_count(&mut self) -> Result<u64>;
    /// `GET_CONFIG` from offset 0. Fills `config`.
    fn config(&mut self, config: &mut [u8]) -> Result<()>;
    /// `SET_MEM_TABLE`.
    fn set_memory(&mut self, regions: &[Region<'_>]) -> Result<()>;
    /// `SET_VRING_NUM`.
    fn set_ring_size(&mut self, ring: usize, size: u16) -> Result<()>;
    /// `SET_VRING_ADDR`.
    fn set_ring_addresses(&mut self, ring: usize, addresses: &RingAddresses) -> Result<()>;
    /// `SET_VRING_BASE`.
    fn set_ring_base(&mut self, ring: usize, base: u16) -> Result<()>;
    /// `SET_VRING_CALL`.
    fn set_ring_call(&mut self, ring: usize, call: &EventFd) -> Result<()>;
    /// `SET_VRING_ERR`.
    fn set_ring_error(&mut self, ring: usize, error: &EventFd) -> Result<()>;
    /// `SET_VRING_KICK`. Starts the ring.
    fn set_ring_kick(&mut self, ring: usize, kick: &EventFd) -> Result<()>;
    /// `SET_VRING_ENABLE`.
    fn set_ring_enabled(&mut self, ring: usize, enabled: bool) -> Result<()>;
    /// `GET_VRING_BASE`. Stops the ring, and returns the index where it stopped.
    fn ring_base(&mut self, ring: usize) -> Result<u32>;
    /// `RESET_DEVICE`.
    fn reset_device(&mut self) -> Result<()>;
}
