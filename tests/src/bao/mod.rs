//! Bao's remote I/O driver, emulated by a test process for the real device model.
//!
//! A seccomp filter diverts the device model's ioctls to the test, which answers them as the driver
//! does, faults included ([`Kernel`]), with a guest behind each device that does what Linux does
//! ([`guest`]). The device model is the program as it is released, and the daemon behind it
//! likewise; plain files stand in for the nodes. Works as an ordinary user.
//!
//! What the driver would not survive is noted and fails the test: a request given back twice or
//! altered, two threads that wait, a device closed, memory mapped with an offset, destroy.

pub mod abi;
mod device;
pub mod eventfds;
mod faults;
pub mod fixture;
pub mod guest;
mod kernel;
pub(crate) mod launch;
mod misuse;
pub mod scenarios;
pub(crate) mod seccomp;
pub mod work;

pub use device::{Device, Hold};
pub use faults::Faults;
pub use kernel::Kernel;
pub use launch::{LAUNCH, Program, become_program, kill_and_wait};
pub use misuse::{MISUSE, misuse};
