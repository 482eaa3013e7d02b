//! The virtio-fs device on vhost-user (virtio 1.2, 5.11).
//!
//! Each connection on the daemon's socket is a device of its own. `connection` forwards the
//! vhost-user messages, `backend` answers them, and each ring has a worker thread that takes
//! [`request::Request`]s off the ring. `scheduling` decides where a request runs; a
//! [`request::Handler`] serves it. The device knows no FUSE.
//!
//! ```text
//! guest ── messages ── connection (quirks) ── vhost-user-backend ── backend ── sets up the rings
//!   └───── rings ───── worker ── chain ── request ── scheduling ── handler
//! ```

mod backend;
mod chain;
mod config_space;
mod connection;
mod exit_event;
mod memory;
mod options;
mod quirks;
pub mod request;
mod scheduling;
pub mod server;
mod vring;
mod worker;

pub use options::Options;
