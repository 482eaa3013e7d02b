//! The host directory as a FUSE file system.
//!
//! [`Share`] is the state that all guests share; [`PassthroughFs`] is one guest's file system on
//! it.

pub mod options;

mod attr_reply;
mod attributes;
mod budget;
mod cache_timeouts;
mod credentials;
mod ctime_stability;
mod dir_stream;
mod errno;
mod eviction;
mod fallocate_copy;
mod fd_cache;
mod file_type;
mod fs;
mod id_map;
mod inode;
mod inode_eviction;
mod inode_numbers;
mod inode_ref;
mod inode_shard;
mod inode_table;
mod keep_cache;
mod locks;
mod lookup;
mod lookup_predictor;
mod mount_handles;
mod mounts;
mod namespace_ops;
mod negotiated_flags;
mod negotiation;
mod no_open;
mod open;
mod open_files;
mod open_flags;
mod open_inode;
mod posix_locks;
mod read_write;
mod readdir;
mod reopen;
mod share;
mod slab;
mod superblock;
mod syncfs_directories;
mod xattr;

pub use fs::PassthroughFs;
pub use options::Options;
pub use share::{Abilities, Share, ShareError};

#[cfg(test)]
mod tests;
