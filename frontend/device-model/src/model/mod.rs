//! A served device: a hypervisor's port, the registers, and a file system behind them.
//!
//! Two threads serve each device and share its registers under one lock. Neither holds the lock
//! while it waits for the guest or for a backend: `serve` answers the guest's accesses, `maintain`
//! keeps the backend connected. While a backend is lost, `maintain` replies to the driver's requests
//! with errors (`lost_rings`), until the driver opens a new session or resets the device.

mod backend_link;
mod fs_device;
mod handover;
mod loss;
mod lost_rings;
mod report;
mod restore;
mod running;
mod serve;
mod stop;

#[cfg(test)]
mod tests;

pub use backend_link::{Connector, SocketConnector, maintain};
pub use fs_device::{Change, FsDevice, FsError};
pub use handover::{EventFdError, Handover};
pub use report::Report;
pub use running::{RunningDevice, StartError};
pub use serve::{Counters, ServeError, serve};
pub use stop::{StopEvent, WaitEnd};
