//! A virtio-mmio device, version 2 of the interface (virtio 1.2, 4.2): its registers and its
//! status.
//!
//! It knows neither the hypervisor nor the device type: accesses come as offset, width and value,
//! and a [`Device`] makes the device a file system or anything else. Every access of a guest has
//! one answer, given before the access ends.
//!
//! ```text
//!             0               ACKNOWLEDGE, DRIVER      FEATURES_OK            DRIVER_OK
//!   reset ───────> registers ─────────────> features ────────────> queues ─────────────> running
//!     ^                                               if they can          Device::activate │
//!     └────────────── Status = 0, from anywhere: Device::reset ─── NEEDS_RESET, FAILED <────┘
//! ```

mod device;
mod eventfds;
mod features;
mod handover;
mod interrupts;
mod queue;
mod register;
mod registers;
mod status;
mod transport;

#[cfg(test)]
mod tests;

pub use device::{Activation, Device, ReadyQueue};
pub use eventfds::EventFds;
pub use features::FeatureBits;
pub use handover::RestoreError;
pub use queue::QueueRegisters;
pub use register::Register;
pub use registers::{RegisterLog, Registers};
pub use status::Status;
pub use transport::{Counts, Transport};

/// `MagicValue`: "virt", little-endian.
pub const MAGIC: u32 = 0x7472_6976;

/// `Version` of the interface.
pub const VERSION: u32 = 2;

/// `VendorID`: "GPLK", little-endian. Any constant would do.
pub const VENDOR: u32 = 0x4b4c_5047;

/// Offset of the device type's configuration space.
pub const CONFIG_SPACE: u64 = 0x100;

/// Bytes of the usual window, which is the smallest for a device with a configuration space.
pub const WINDOW_LEN: u64 = 0x200;
