//! Errors between a device model and its fd store.

use std::io;

/// Why a descriptor is not kept.
#[derive(Debug, thiserror::Error)]
pub enum FdStoreError {
    /// No fd store runs, and none can be started.
    #[error("cannot {doing} the process that keeps the devices over a restart, {name:?}")]
    Start {
        /// The verb.
        doing: &'static str,
        /// The fd store's name.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A process of another user has the fd store's name.
    #[error("{name:?} belongs to a process of user {user}: it must be this user or root")]
    Stranger {
        /// Its name.
        name: String,
        /// The user's id.
        user: u32,
    },
    /// Another device model serves the device.
    #[error("process {process} serves device {device} already")]
    Busy {
        /// The device.
        device: u32,
        /// The other device model's process.
        process: u32,
    },
    /// The fd store refused a request.
    #[error("the process that keeps the devices over a restart refused to {doing}")]
    Refused {
        /// The request.
        doing: &'static str,
    },
    /// The fd store has gone, or does not answer.
    #[error("the process that keeps the devices over a restart did not {doing}")]
    Lost {
        /// The request.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The host refused a resource.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}
