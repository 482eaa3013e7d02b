//! A device's registers as plain data, to be had back by a successor.

use std::fmt::Debug;

use super::queue::QueueRegisters;
use super::status::Status;

/// All that a guest's driver has written, and what it has been told.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[allow(missing_docs)] // the specification's names
pub struct Registers {
    pub status: Status,
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    /// Both words of `DriverFeatures`.
    pub features: u64,
    pub queue_sel: u32,
    pub interrupt_status: u32,
    pub config_generation: u32,
    /// Whether the device has been told to run since the last reset.
    pub activated: bool,
    /// As many as the device has; none after a reset until one is written to.
    pub queues: Vec<QueueRegisters>,
    /// The configuration space.
    pub config: Vec<u8>,
}

/// Where registers are written down.
pub trait RegisterLog: Debug + Send {
    /// Writes them down, in no time: a CPU of the guest stands still.
    fn save(&self, registers: &Registers);
}
