//! The host directory as a FUSE file system.
//!
//! [`Share`] is the state that all guests share; [`PassthroughFs`] is one guest's file system on
//! it.

pub mod options;

mod attr_reply;
mod attributes;
mod budget;
mod credentials;
mod eviction;
mod fallocate_copy;
mod fd_cache;
mod fs;
mod inode;
mod inode_numbers;
mod inode_table;
mod keep_cache;
mod locks;
mod lookup;
mod mount_handles;
mod mounts;
mod namespace_ops;
mod negotiation;
mod no_open;
mod open;
mod open_files;
mod open_flags;
mod read_write;
mod readdir;
mod reopen;
mod share;
mod slab;
mod superblock;
mod xattr;

pub use fs::PassthroughFs;
pub use options::Options;
pub use share::{Abilities, Share, ShareError};

#[cfg(test)]
mod tests;
