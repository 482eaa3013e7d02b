//! What stands behind the registers: one virtio device of whatever type.

use std::error::Error;

/// A device type, or rather one device of it. All methods are called one at a time while a CPU of the guest stands still,
/// so none may wait without a limit.
pub trait Device: Send {
    /// Why it could not be activated.
    type Error: Error + Send + Sync + 'static;

    /// `DeviceID` (virtio 1.2, 5); 26 is a file system.
    fn device_id(&self) -> u32;

    /// Feature bits that it offers; what of them reaches the guest is [`super::FeatureBits::offered`]'s to say.
    fn features(&self) -> u64;

    /// The largest size of each of its queues, in their order: powers of two, and the same for as long as it lives.
    fn queue_sizes(&self) -> &[u16];

    /// Its configuration space; reads as 0 behind the end.
    fn config(&self) -> &[u8];

    /// The driver writes `bytes` at `offset` of the configuration space; both may be out of it.
    fn write_config(&mut self, offset: u64, bytes: &[u8]);

    /// The driver is ready: run the queues. It may do so later, when what it needs is there. On an error the device is
    /// broken until it is reset.
    fn activate(&mut self, activation: Activation) -> Result<(), Self::Error>;

    /// Go on where a predecessor left off: `config` was its configuration space, as long as this one's, and `running` is what
    /// the driver had set up, if it was running. Called before anything else, if at all.
    fn resume(&mut self, config: &[u8], running: Option<Activation>);

    /// Stop one queue, before this returns: nothing of it is touched any more.
    fn stop_queue(&mut self, index: u16);

    /// Stop everything, before this returns: no queue is touched and no interrupt raised any more, and whatever the driver
    /// negotiated is forgotten. It cannot fail; cutting the connection to whoever does not stop is a way. Only called
    /// after [`Device::activate`], whether that succeeded or not.
    fn reset(&mut self);
}

/// What the driver has set up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Activation {
    /// The feature bits negotiated with the guest, [`super::FeatureBits::ACCESS_PLATFORM`] among them.
    pub features: u64,
    /// The queues that the driver uses, in ascending order. The others stay silent.
    pub queues: Vec<ReadyQueue>,
}

/// A virtqueue whose three areas are aligned and lie in the shared memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReadyQueue {
    /// Which one.
    pub index: u16,
    /// Entries: a power of two, at most the largest size.
    pub size: u16,
    /// Guest address of the descriptor area.
    pub descriptors: u64,
    /// Guest address of the driver area: the available ring.
    pub available: u64,
    /// Guest address of the device area: the used ring.
    pub used: u64,
}
