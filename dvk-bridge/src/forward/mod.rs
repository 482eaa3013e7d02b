//! `gangplank-dvk forward`: passes the requests to endpoints here on to the same endpoints
//! elsewhere.
//!
//! ```text
//!   client ── /dev/dvk ── endpoint 1 ─┬─ proxy client 10 ── TCP or switch ── server's endpoint 1
//!   client ───────────────┘           └─ proxy client 11 ──┘
//! ```
//!
//! DVK's kernels have 32 bits, a virtio-fs daemon and the server in front of it 64. So the share of
//! such a kernel's processes is on another machine. For each client a proxy client binds the
//! client's endpoint there and sends its requests. A copy to or from the client's memory there
//! becomes a copy at the endpoint here. When a client has gone, its proxy client ends, and the
//! server frees what the client held.

mod args;
mod command;
mod context;
mod forwarder;
mod proxy_client;

pub use args::ForwardArgs;
pub use command::{ForwardError, run};
pub use forwarder::Forward;
