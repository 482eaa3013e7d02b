//! A device of the model: a hypervisor's port, the registers, and a file system behind them.
//!
//! Two threads serve each device, and share its registers under one lock that neither holds while it waits for the
//! guest or for a daemon to appear: `serve` answers the guest's accesses, `keep` keeps in touch with the daemon.

mod backend_link;
mod fs_device;
mod handover;
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
