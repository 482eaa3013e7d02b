//! The rhostfs server: a DVK endpoint that turns its clients' calls into requests to a virtio-fs
//! daemon.
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
//! Every request is answered, because a client without an answer takes uninitialised memory for
//! success.

mod attributes;
mod backend;
mod backend_file;
mod cache;
mod call;
mod client;
mod concurrency;
mod cookies;
mod credentials;
mod data;
mod dir_handles;
mod failure;
mod fd_numbers;
mod file_identity;
mod handle;
mod listing;
mod names;
mod open;
mod open_flags;
mod path;
mod path_cache;
mod pool;
mod request_context;
mod resolver;
mod serve;
mod settings;
mod wire;

pub use credentials::Credentials;
pub use resolver::SymlinkPolicy;
pub(super) use serve::check_root;
pub use serve::{Options, Server, StartError};
