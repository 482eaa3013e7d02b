//! One guest's FUSE session: INIT negotiation, decoding, the call of a [`FileSystem`], encoding.

mod file_system;
mod name;

pub use file_system::{Caller, Creator, FileSystem, LockWait};
pub use name::{InvalidName, Name};
