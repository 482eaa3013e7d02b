//! The tunnel: offers a guest a virtio-fs device, and carries its requests to a server elsewhere.
//!
//! ```text
//!   serve    the guest's connection, kicks, its end        the guest's thread
//!     device   what its messages set up
//!     state    rings, requests that wait, slots, session   behind one lock
//!   worker   sends requests and completes them             a thread for each endpoint
//!   link     opens the session and keeps it                a thread
//!   memory   the bytes of a request as DVK copies see them
//!   inflight notes for the next tunnel process             in the frontend's memory
//! ```
//!
//! While the server cannot be reached, requests wait, each up to a limit. When a session is lost,
//! because the server or its daemon has ended, all requests fail with ENOTCONN until the guest
//! mounts anew, as behind the relay.

mod args;
mod command;
mod device;
mod inflight;
mod job;
mod link;
mod memory;
mod serve;
mod state;
mod worker;

pub use args::TunnelArgs;
pub use command::{TunnelError, run};

use std::time::Duration;

use crate::abi::{DcId, Endpoint};

/// Options of all guests of a tunnel.
#[derive(Clone, Debug)]
struct Options {
    /// The container.
    dc: DcId,
    /// The first endpoint of the server.
    server: Endpoint,
    /// The server, for logs.
    server_name: String,
    /// The first endpoint of the tunnel.
    client: Endpoint,
    /// Endpoints for requests, behind the first.
    queues: u16,
    /// The tag, in place of the daemon's.
    tag: Option<String>,
    /// How long a request waits for the server.
    limit: Duration,
}

/// The endpoint that is `index` behind `first`.
const fn behind(first: Endpoint, index: u16) -> Endpoint {
    Endpoint::from_raw(first.raw().saturating_add(index as i32))
}
