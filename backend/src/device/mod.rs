//! The virtio-fs device on vhost-user (virtio 1.2, 5.11).
//!
//! Each connection on the daemon's socket is a device of its own: `connection` carries the vhost-user messages,
//! `backend` answers them, and every ring has a worker thread that takes [`request::Request`]s off it and hands them
//! to a [`request::Handler`]. What a request says is the handler's business: the device knows no FUSE.
//!
//! ```text
//! guest ── messages ── connection (quirks) ── vhost-user-backend ── backend ── set-up of the rings
//!   └───── rings ───── worker ── chain ── request ── handler
//!                         └ thread_pool (where there is one)
//! ```

mod backend;
mod busy_poll;
mod chain;
mod config_space;
mod connection;
mod exit_event;
mod interrupt_coalescing;
mod memory;
mod options;
mod quirks;
pub mod request;
pub mod server;
mod thread_pool;
mod vring;
mod worker;

pub use options::Options;
