//! `gangplank-dvk forward`: what is asked of an endpoint here is asked of the same endpoint elsewhere.
//!
//! ```text
//!   client ── /dev/dvk ── endpoint 1 ─┬─ visitor 10 ── TCP, or a switch ── endpoint 1, the server
//!   client ───────────────┘           └─ visitor 11 ──┘
//! ```
//!
//! DVK's kernels are of 32 bits, a virtio-fs daemon and the server in front of it of 64, so a share gets to the processes of such
//! a kernel from another machine. For each client a visitor binds the client's endpoint there, and asks in its place. It lends
//! what it has not: a copy to or from a client's memory becomes one of the endpoint here. When a client has gone, so does its
//! visitor, and the server frees what it held.

mod args;
mod command;
mod context;
mod forwarder;
mod proxy_client;

pub use args::ForwardArgs;
pub use command::{ForwardError, run};
pub use forwarder::Forward;
