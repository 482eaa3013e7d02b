//! `gangplank-dvk`'s library: DVK endpoints, and what gangplank shares with machines that speak nothing else.
//!
//! DVK is the message passing of a Distributed Virtualization System (DVS): processes bind endpoints, exchange small
//! messages of fixed size, and let their partners copy from and to their memory meanwhile.

pub mod abi;
pub mod args;
pub mod carrier;
pub mod cli_types;
pub mod dump;
pub mod endpoint;
pub mod forward;
pub mod rhostfs;
pub mod server_addr;
pub mod status;
pub mod switch;
