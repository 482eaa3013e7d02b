//! The host directory as a FUSE file system.
//!
//! [`Share`] is what all guests have in common, [`PassthroughFs`] is one guest's file system on it.

pub mod options;

mod attributes;
mod budget;
mod change_attributes;
mod closed_files;
mod content;
mod credentials;
mod directory;
mod eviction;
mod extended_attributes;
mod fs;
mod inode;
mod inodes;
mod io;
mod locks;
mod lookup;
mod mount_handles;
mod negotiation;
mod numbers;
mod open;
mod open_files;
mod open_flags;
mod places;
mod ranges;
mod recall;
mod share;
mod slab;
mod syncfs;
mod tree;
mod unopened;

pub use fs::PassthroughFs;
pub use options::Options;
pub use share::{Abilities, Share, ShareError};

#[cfg(test)]
mod tests;
