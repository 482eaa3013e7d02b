//! Carriers: the ways in which an endpoint's messages get to other processes.
//!
//! - [`node`]: this process is a node of a DVS, and its peers are reached over TCP.
//! - `engine` does for a carrier what does not depend on how commands travel.

mod engine;
pub mod node;
