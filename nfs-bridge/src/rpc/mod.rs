//! ONC RPC: records on a stream, calls and replies, and the programs that answer.
//!
//! ```text
//!   network ── record ──> server ── call ──> replay ──> program ── reply ──> network
//! ```
//!
//! The other way round, `client` calls the clients back.

pub mod client;
pub mod message;
pub mod program;
pub mod record;
pub mod replay;
pub mod reply;
pub mod reply_budget;
pub mod server;
