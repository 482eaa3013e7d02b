//! Carriers: the ways in which an endpoint's messages get to other processes.
//!
//! - [`device`]: the kernel's own DVK, where it has one.
//! - [`local`]: programs on one host meet at a switch.
//! - [`node`]: this process is a node of a DVS, and its peers are reached over TCP.
//! - `engine` does for all what does not depend on how commands travel, `stream` puts them onto connections.

pub mod device;
pub(crate) mod engine;
pub mod local;
pub mod node;
pub(crate) mod stream;
