//! The virtio-fs device on vhost-user (virtio 1.2, 5.11).
//!
//! Each worker process has one connection, and one device on it. `connection` forwards the
//! vhost-user messages, `backend` answers them, and each ring has a worker thread that takes
//! [`request::Request`]s off the ring. `scheduling` decides where a request runs; a
//! [`request::Handler`] serves it. The device knows no FUSE.
//!
//! ```text
//! guest ── messages ── connection (quirks) ── vhost-user-backend ── backend ── sets up the rings
//!   └───── rings ───── worker ── chain ── request ── scheduling ── handler
//! ```

mod backend;
pub mod chain;
mod config_space;
pub mod connection;
mod dirty_log;
mod exit_event;
mod memory;
mod memory_limits;
mod notifier;
mod options;
mod peek;
mod private_memory;
mod quirks;
mod reconnect;
mod recorder;
mod reminder;
mod replay;
pub mod reply_pipe;
pub mod request;
mod ring_throttle;
mod scheduling;
mod state_transfer;
mod throttle;
mod vring;
mod wake_blocked;
mod worker;

pub use options::{Limits, Options, Rate};
pub use reconnect::KeptSession;
