//! A device of the model: a hypervisor's port, the registers, and a file system behind them.
//!
//! Two threads serve each device, and share its registers under one lock that neither holds while it waits for the
//! guest or for a daemon to appear: `serve` answers the guest's accesses, `keep` keeps in touch with the daemon.

mod fs;
mod handover;
mod link;
mod report;
mod restore;
mod running;
mod serve;
mod stop;

#[cfg(test)]
mod tests;

pub use fs::{Change, FsDevice, FsError};
pub use handover::{Handover, WiresError};
pub use link::{Connector, ToSocket, keep};
pub use report::Report;
pub use running::{Running, StartError};
pub use serve::{Counters, ServeError, serve};
pub use stop::{Stop, Waited};
