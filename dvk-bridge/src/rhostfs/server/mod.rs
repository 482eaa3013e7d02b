//! The rhostfs server: a DVK endpoint whose clients' calls become requests to a virtio-fs daemon.
//!
//! ```text
//!   endpoint ─> serve     takes requests, knows clients, hands out work and sends answers
//!            ─> pool      one request of each client at a time, those of different clients at once
//!            ─> call      the message as a call
//!            ─> work      does it: path names copied from the client's memory,
//!               tree      looked up beneath the root with a cache of directories,
//!               handle, stream, cookies   numbers that mean something to this client alone,
//!               link      asked of the daemon, which may come and go
//!            ─> endpoint  results copied to the client's memory; then the answer
//! ```
//!
//! Whatever a client sends is answered, since one that is not takes its own rubbish for success.

mod aside;
mod attributes;
mod birth;
mod cache;
mod call;
mod client;
mod cookies;
mod data;
mod failure;
mod handle;
mod identity;
mod link;
mod listing;
mod names;
mod numbers;
mod open;
mod opened;
mod path;
mod pool;
mod remembered;
mod serve;
mod stream;
mod tree;
mod wire;
mod work;

pub use identity::Identity;
pub(super) use serve::check_root;
pub use serve::{Options, Server, StartError};
pub use tree::Links;

/// What the operator has chosen, as far as calls depend on it.
#[derive(Clone, Debug)]
struct Settings {
    identity: Identity,
    links: Links,
    read_only: bool,
    /// Open files of one client.
    handles: usize,
    /// Those of them that the daemon has open at once.
    open: usize,
    /// The root's path, as the client is told it.
    root_name: String,
}
