//! What can go wrong between a device model and its holder.

use std::io;

/// Why something is not kept.
#[derive(Debug, thiserror::Error)]
pub enum FdStoreError {
    /// There is none, and none can be started.
    #[error("cannot {doing} the process that keeps the devices over a restart, {name:?}")]
    Start {
        /// What was being done.
        doing: &'static str,
        /// Its name.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else answers to its name.
    #[error("{name:?} is a process of user {user}, and not of this one or root")]
    Stranger {
        /// Its name.
        name: String,
        /// The user by number.
        user: u32,
    },
    /// Another device model serves the device.
    #[error("process {process} serves device {device} already")]
    Busy {
        /// The device.
        device: u32,
        /// The other's process.
        process: u32,
    },
    /// It does not keep something.
    #[error("the process that keeps the devices over a restart did not {doing}")]
    Refused {
        /// What it was asked for.
        doing: &'static str,
    },
    /// It has gone, or does not answer.
    #[error("cannot have the process that keeps the devices over a restart {doing}")]
    Lost {
        /// What it was asked for.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The host refuses a resource.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
