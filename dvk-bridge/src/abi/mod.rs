//! DVK's interfaces in memory and on the wire: numbers and layouts without behaviour.
//!
//! All layouts are those of i386, little-endian, on any machine, because DVK exists for i386 alone.
//! The sources are the headers of PID5162 as of July 2022, and their history.

mod code;
mod command;
mod endpoint;
mod generation;
mod guess;
mod header;
pub mod ioctl;
mod message;
pub mod rhostfs;
#[cfg(test)]
mod vectors;
mod wire;

pub use code::Code;
pub use command::Command;
pub use endpoint::{DcId, DcLimits, Endpoint, NodeId};
pub use generation::Generation;
pub use header::{CopyBlock, Header, HeaderError, HeaderFlags, MAX_BATCH, MAX_PAYLOAD, Timestamp};
pub use message::{Arm, M1, M2, M3, M4, M5, M6, M7, M8, M9, MA, MB, MBLegacy, MC, Message};
