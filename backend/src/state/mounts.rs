//! The mounts below the share, as the worker found them.
//!
//! An inode's record has its mount as an index into this list. A mount is added behind the others:
//! its record is filled, and the number of mounts is stored last.
//!
//! A mount's descriptor is recorded as long as the state has file handles of it. Its number is
//! stored before they are counted, and cleared after the last is uncounted, before the descriptor
//! is closed. So a recorded number is at any time that of the mount's descriptor.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::arena::Arena;
use super::descriptors::DescriptorNumber;
use crate::sys::shared_memory::shared_struct;

/// Limit of mounts: a reference has 16 bits for one.
pub const MAX_MOUNTS: usize = 1 << 16;

shared_struct! {
    /// One mount.
    #[derive(Debug, Default)]
    pub struct MountRecord {
        /// Its id.
        pub mount_id: AtomicU64,
        /// The device number.
        pub device: AtomicU64,
        /// Bits that say what is known of the file system.
        pub properties: AtomicU32,
        /// Whether file handles work.
        pub handles: AtomicU32,
        /// The descriptor that opens handles.
        pub descriptor: DescriptorNumber,
        /// File handles in the state that need the descriptor; never too few.
        pub references: AtomicU32,
    }
}

/// The numbers of all recorded descriptors. A worker that starts after a death must leave these
/// open until the list of mounts has taken them over.
pub fn descriptors(arena: &Arc<Arena>) -> Vec<RawFd> {
    let count = arena.header().mounts.load(Ordering::Acquire) as usize;
    let mounts = arena.mounts();
    let known = mounts.iter().take(count);
    known.filter_map(|mount| mount.descriptor.get()).collect()
}
