//! The device type behind the registers.

use std::error::Error;

/// One virtio device of any type. Methods are called one at a time while a CPU of the guest waits,
/// so none may wait without a limit.
pub trait Device: Send {
    /// Why the device could not be activated.
    type Error: Error + Send + Sync + 'static;

    /// `DeviceID` (virtio 1.2, 5); 26 is a file system.
    fn device_id(&self) -> u32;

    /// Feature bits that the device offers. [`super::FeatureBits::offered`] decides which of them
    /// the guest sees.
    fn features(&self) -> u64;

    /// The largest size of each queue, in order: powers of two that never change.
    fn queue_sizes(&self) -> &[u16];

    /// The configuration space. It reads as 0 beyond its end.
    fn config(&self) -> &[u8];

    /// The driver writes `bytes` at `offset` of the configuration space. Either may be beyond its
    /// end.
    fn write_config(&mut self, offset: u64, bytes: &[u8]);

    /// The driver is ready: start the queues, now or as soon as that is possible. After an error
    /// the device is broken until it is reset.
    fn activate(&mut self, activation: Activation) -> Result<(), Self::Error>;

    /// Continue as a predecessor: `config` was its configuration space, as long as this one's, and
    /// `running` is what the driver had set up if it was running. Called before any other method,
    /// or never.
    fn resume(&mut self, config: &[u8], running: Option<Activation>);

    /// Continue as a predecessor whose device is broken until the driver resets it. What the driver
    /// had set up is `driver`. Called after [`Device::resume`], or never.
    fn resume_broken(&mut self, driver: Activation);

    /// Stop one queue. After this returns, nothing of the queue is accessed.
    fn stop_queue(&mut self, index: u16);

    /// Stop everything. After this returns, no queue is accessed, no interrupt is raised, and the
    /// driver's features are forgotten. This cannot fail: a device may cut the connection to a
    /// backend that does not stop. Called only after [`Device::activate`], whatever that returned.
    fn reset(&mut self);
}

/// What the driver has set up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Activation {
    /// The feature bits that the driver has accepted, [`super::FeatureBits::ACCESS_PLATFORM`]
    /// included.
    pub features: u64,
    /// The queues that the driver uses, in ascending order.
    pub queues: Vec<ReadyQueue>,
}

/// A virtqueue whose three areas are aligned and lie in the shared memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReadyQueue {
    /// Its index.
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
