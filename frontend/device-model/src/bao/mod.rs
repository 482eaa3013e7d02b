//! Bao: the port for the devices of its remote I/O driver, in all generations of the driver but the
//! first.
//!
//! Three layers: `sys` has the numbers and structures, `fd` a safe function for each call,
//! [`BaoPort`] is the port. A kernel's generation is found by calls without effect: every call
//! copies its argument before it does anything, so a call with a null pointer fails with EFAULT if
//! the driver knows it, and with ENOTTY if not.
//!
//! The port avoids what the driver does not survive: one thread at a time waits for requests, all
//! signals are blocked on it, each request is given back once and as it came, and a device's
//! descriptor is never closed. The kernel writes a request straight into the device's journal and
//! takes it from there, so that a successor completes it if this process ends first.

mod device;
mod error;
mod fd;
mod node;
mod signals;
mod sys;

#[cfg(test)]
mod tests;

pub use device::BaoPort;
pub use error::BaoError;
pub use node::{Bao, Node};

/// The type of all ioctls of the driver (asm-generic/ioctl.h).
pub(crate) const IOCTL_TYPE: u32 = sys::Call::TYPE;
