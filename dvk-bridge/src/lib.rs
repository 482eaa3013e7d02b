//! The library of `gangplank-dvk`: DVK endpoints, and the shared directory for machines that speak
//! nothing else.
//!
//! DVK is the message passing of a Distributed Virtualization System (DVS). Processes bind
//! endpoints, exchange small messages of fixed size, and let a called process copy to and from
//! their memory.

pub mod abi;
pub mod args;
pub mod carrier;
pub mod cli_types;
pub mod dump;
pub mod endpoint;
pub mod forward;
pub mod manual;
pub mod rhostfs;
pub mod sandbox;
pub mod server_addr;
pub mod server_carrier;
pub mod status;
pub mod switch;
#[cfg(target_pointer_width = "64")]
pub mod tunnel;
