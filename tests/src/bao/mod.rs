//! Bao's remote I/O driver, emulated by a test process for the real device model.
//!
//! A seccomp filter diverts the device model's ioctls to the test. The test answers them as the
//! driver does, with its faults ([`Kernel`]). Behind each device is a guest that does what Linux
//! does ([`guest`]). The device model and the daemon behind it are the released programs. Plain
//! files replace the nodes. No privileges are needed.
//!
//! A test fails if a device model does what the driver would not survive: complete a request twice
//! or altered, wait in two threads, close a device, map memory with an offset, destroy a device.

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
