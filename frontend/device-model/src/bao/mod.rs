//! Bao: the port for the devices of its remote I/O driver, in all generations of the driver but the first.
//!
//! Three layers: `sys` has the numbers and structures, `fd` a safe function for each call, [`BaoPort`] is the port. Which
//! generation a kernel has is found without effect: every call copies its argument before it does anything, so one with a
//! null pointer fails with EFAULT if it is known and with ENOTTY if not.
//!
//! What the driver does not survive is kept from it: one thread at a time waits for requests, no signal reaches it, each
//! request is given back once and as it came, and a device's descriptor is never closed. A request goes from the kernel straight
//! into the device's journal and from there back, so that a successor completes what this process was ended before it could.

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
