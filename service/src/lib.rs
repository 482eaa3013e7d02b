//! What every program of the workspace needs to be a good service.
//!
//! It knows processes, sockets and signals, and neither FUSE nor vhost-user. Everything here works
//! on 32-bit machines too.

pub mod activation;
pub mod broken_pipe;
pub mod busy_poll;
#[cfg(feature = "captured-log")]
pub mod captured_log;
pub mod connect_timeout;
pub mod deadline_io;
pub mod error_chain;
pub mod fd_store;
pub mod first_few;
pub mod fnv;
pub mod group;
pub mod http;
pub mod logging;
pub mod manual;
pub mod output;
pub mod owned_file;
pub mod peer_cred;
pub mod rate_limit;
pub mod readiness;
pub mod rlimit;
pub mod seqpacket;
pub mod signals;
pub mod unix_listener;
pub mod watchdog;

pub use error_chain::error_chain;
