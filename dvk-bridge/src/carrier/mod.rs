//! Carriers: the ways in which an endpoint's messages get to other processes.
//!
//! - [`local`]: programs on one host meet at a switch.
//! - [`node`]: this process is a node of a DVS, and its peers are reached over TCP.
//! - `engine` does for both what does not depend on how commands travel, `stream` puts them onto connections.

pub(crate) mod engine;
pub mod local;
pub mod node;
pub(crate) mod stream;
