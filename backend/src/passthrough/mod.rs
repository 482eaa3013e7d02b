//! The host directory as a FUSE file system.

pub mod options;

pub use options::Options;
