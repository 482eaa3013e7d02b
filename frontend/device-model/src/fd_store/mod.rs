//! The fd store: a small process that outlives the device model and keeps descriptors for its
//! successor.
//!
//! Bao's driver does not survive the last close of a device's descriptor, and a guest's CPU waits
//! as long as its access is not completed. The fd store keeps each device's descriptor, its
//! eventfds, the connection to its backend and its [`crate::journal`], and gives them to the next
//! device model that asks.
//!
//! ```text
//!   device model ── HELLO, CLAIM device, GET / PUT / DROP slot ──> fd store
//!                <── answer ─────────────────────────────────────   (SOCK_SEQPACKET)
//! ```
//!
//! The first device model starts the fd store, which then runs until the machine is switched off.
//! The fd store does not interpret what it keeps, reads no configuration and never touches a
//! device, so there is little that can make it fail. A device is claimed for as long as the
//! claiming connection lasts; a second claim is refused. Each end accepts the other only if it runs
//! as the same user or root.
//!
//! Its name (option `--holder`) is in the abstract namespace of Unix sockets: only one process can
//! bind it, it leaves no file behind, and it goes with the process.

mod channel;
mod client;
mod entry;
mod error;
mod eventfd;
mod executable;
mod message;
mod process;
mod start_options;
mod store;

#[cfg(test)]
pub(crate) mod tests;

pub use client::{FdStore, name_for_node};
pub use entry::Entry;
pub use error::FdStoreError;
pub(crate) use eventfd::as_descriptor;
pub use message::Slot;
pub use process::{RunError, run};
pub use start_options::StartOptions;
