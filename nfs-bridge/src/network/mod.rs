//! How calls arrive: over the host's sockets, or over a network stack of this program's own.

mod admission;
pub mod config;
pub mod connections;
pub mod host;
mod line;
pub mod link;
pub mod stack;
mod stream;
mod switch;

use crate::nfs3::MAX_IO;

/// Longest record, in bytes: the largest WRITE and what comes with it.
pub const MAX_RECORD: usize = MAX_IO as usize + 8192;

/// Longest datagram, in bytes. Those of the port mapper and of locks are far shorter, but for long
/// names.
pub const MAX_DATAGRAM: usize = 2048;

/// Most calls by datagrams that wait or are executed. Further ones are lost, and clients repeat
/// them.
pub const MAX_DATAGRAM_CALLS: usize = 64;

/// Most connections at once.
pub const MAX_CONNECTIONS: usize = 128;

/// Most calls of one connection that wait, are executed, or have a reply that the client has not
/// taken. Further ones stay in the network.
pub const MAX_CALLS: usize = 16;
