//! Carriers: how an endpoint's messages reach other processes.
//!
//! - [`device`]: the kernel's own DVK.
//! - [`local`]: a switch that connects programs on one host.
//! - [`node`]: this process is a node of a DVS and reaches its peers over TCP.
//! - `engine` is what all carriers have in common, `stream` sends commands over connections.

pub mod device;
pub(crate) mod engine;
pub mod local;
pub mod node;
pub(crate) mod stream;
