//! The host directory as a FUSE file system.
//!
//! A worker serves one guest. [`Share`] is what the worker knows of the directory: options, mounts,
//! descriptor budget. [`PassthroughFs`] is the guest's file system: a `Share`, and a `GuestState`
//! that a new session replaces. Each module depends only on those above it in this list:
//!
//! | modules | content |
//! | --- | --- |
//! | `id_map`, `xattr_map`, `options`, `file_type`, `errno` | what all others use |
//! | `budget`, `inode_memory` | counted descriptors and bytes |
//! | `mount_handles`, `mounts` | mounts, their file handles, identity of an inode |
//! | `inode_ref`, `remembered_dir_block`, `remembered_names`, `inode_refs` | reopening an inode |
//! | `inode`, `inode_shard`, `fd_cache`, `inode_table` | the guest's inodes |
//! | `inode_eviction`, `inode_removal`, `inode_notes` | inodes without a descriptor; forgotten inodes; references of the others |
//! | `inode_transfer` | the inodes of a guest that leaves or arrives |
//! | `credentials`, `cache_timeouts`, `share` | the directory |
//! | `open_flags`, `dir_stream`, `open_files`, `posix_locks`, `syncfs_directories`, `watched_directories` | open files, watched directories |
//! | `negotiated_flags`, `lookup_predictor`, `ctime_stability`, `inode_numbers` | other state |
//! | `guest_state`, `fs` | all state of the guest; node ids |
//! | `find_again` | inodes that a server calls stale |
//! | `reopen`, `eviction`, `noted_refs`, `lost_descriptors` | descriptors that are given up or lost and opened again; permits |
//! | `attr_reply`, `superblock`, `keep_cache`, `open_inode`, `no_open`, `xattr_names`, `ownership`, `new_object`, `hidden_names` | used by other operations |
//! | `negotiation`, `lookup`, `attributes`, `namespace_ops`, `open`, `readdir` | operations |
//! | `read_write`, `append_again`, `fallocate_copy`, `xattr`, `ioctl`, `locks` | operations |
//! | `changes` | what others change |
//! | `migration` | a guest that leaves or arrives |

pub mod id_map;
pub mod options;
pub mod xattr_map;

mod append_again;
mod attr_reply;
mod attributes;
mod budget;
mod cache_timeouts;
mod changes;
mod credentials;
mod ctime_stability;
mod dir_stream;
mod errno;
mod eviction;
mod fallocate_copy;
mod fd_cache;
mod file_type;
mod find_again;
mod fs;
mod guest_state;
mod hidden_names;
mod inode;
mod inode_eviction;
mod inode_memory;
mod inode_notes;
mod inode_numbers;
mod inode_ref;
mod inode_refs;
mod inode_removal;
mod inode_shard;
mod inode_table;
mod inode_transfer;
mod ioctl;
mod keep_cache;
mod locks;
mod lookup;
mod lookup_predictor;
mod lost_descriptors;
mod migration;
mod mount_handles;
mod mounts;
mod namespace_ops;
mod negotiated_flags;
mod negotiation;
mod new_object;
mod no_open;
mod noted_refs;
mod open;
mod open_file;
mod open_files;
mod open_flags;
mod open_inode;
mod ownership;
mod posix_locks;
mod read_write;
mod readdir;
mod remembered_dir_block;
mod remembered_names;
mod reopen;
mod share;
mod superblock;
mod syncfs_directories;
mod watched_directories;
mod xattr;
mod xattr_names;

pub use fs::{PassthroughFs, correct};
pub use lost_descriptors::{Lost, forget_lost, hold_again};
pub use options::Options;
pub use share::{Abilities, Share, ShareError};

#[cfg(test)]
mod tests;
