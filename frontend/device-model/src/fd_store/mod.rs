//! The holder: a small process that outlives the device model and keeps what a successor goes on with.
//!
//! Bao's driver does not survive that a device's last descriptor is closed, and a guest's CPU stands still as long as its
//! access is not completed. So a process of its own keeps the descriptor of each device, its eventfds, the connection to its
//! daemon and its [`crate::journal`], and hands them to the next device model that asks.
//!
//! ```text
//!   device model ── HELLO, CLAIM device, GET / PUT / DROP slot (SOCK_SEQPACKET, one descriptor at most) ──> holder
//!                <── answer ───────────────────────────────────────────────────────────────────────────
//! ```
//!
//! It is started on demand by the first device model and ends with the machine. It looks into nothing that it keeps, takes no
//! configuration and never touches a device: that is what lets it live. Devices are claimed one by one, for as long as the
//! claiming connection lasts; who comes second is refused. Both sides accept only their own user, or root, as the other.
//!
//! Its name is in the abstract namespace of Unix sockets: it can be bound once only, leaves no file behind, and is gone with
//! the process.

mod channel;
mod client;
mod entry;
mod error;
mod eventfd;
mod message;
mod process;
mod store;

#[cfg(test)]
pub(crate) mod tests;

pub use client::{FdStore, name_for_node};
pub use entry::Entry;
pub use error::FdStoreError;
pub use message::Slot;
pub use process::{RunError, run};
