//! The rhostfs server: a DVK endpoint that turns its clients' calls into requests to a virtio-fs
//! daemon.
//!
//! ```text
//!   endpoint ─> serve     receives requests, keeps clients, queues work and sends answers
//!            ─> pool      runs one request of each client at a time, and clients in parallel
//!            ─> call      decodes the message
//!            ─> request_context   copies path names from the client's memory
//!               resolver, path_cache      look paths up beneath the root
//!               handle, dir_handles, cookies   keep the numbers of this client
//!               backend   sends requests to the daemon, which may stop and restart
//!            ─> endpoint  copies results to the client's memory, then answers
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
