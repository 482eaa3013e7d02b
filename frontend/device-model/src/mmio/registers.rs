//! A device's registers as plain data, for a successor.

use std::fmt::Debug;

use super::queue::QueueRegisters;
use super::status::Status;

/// Everything that a guest's driver has written, and what it has been told.
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
    /// Whether the device was activated since the last reset.
    pub activated: bool,
    /// One for each queue of the device; empty from a reset until a queue register is written.
    pub queues: Vec<QueueRegisters>,
    /// The configuration space.
    pub config: Vec<u8>,
}

/// Saves registers for a successor.
pub trait RegisterLog: Debug + Send {
    /// Saves them without delay: a CPU of the guest waits.
    fn save(&self, registers: &Registers);
}
