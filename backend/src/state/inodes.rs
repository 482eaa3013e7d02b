//! The records of the inodes that a guest knows.
//!
//! Inodes are divided into shards, each a table ([`super::slab`]) under a lock of the worker's.
//! Everything that belongs to a shard follows from its records: the index, the bits of used
//! records, the counts. A thread that changes a shard marks it ([`super::table`]), so that a worker
//! that starts after a death rebuilds what may be half done, and only that.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use super::descriptors::{DescriptorNumber, HasDescriptor, Kind};
use super::slab::Record;
use crate::sys::shared_memory::shared_struct;

/// Number of shards.
pub const SHARDS: usize = 16;

shared_struct! {
    /// One inode. All times are those of the host.
    #[derive(Debug, Default)]
    pub struct InodeRecord {
        /// The key; 0 if the entry is unused. Stored last, cleared first.
        pub key: AtomicU64,
        /// Inode number.
        pub ino: AtomicU64,
        /// Index of the mount.
        pub mount: AtomicU32,
        /// The `O_PATH` descriptor that pins the inode.
        pub descriptor: DescriptorNumber,
        /// Look-ups that the guest has not forgotten yet.
        pub lookup_count: AtomicU64,
        /// The ctime at the guest's last open, in nanoseconds since the epoch; 0 if it is not
        /// reliable.
        pub ctime: AtomicI64,
        /// The guest's open files on this inode.
        pub open_count: AtomicU32,
        /// The file size that the guest's kernel knows.
        pub known_size: AtomicU32,
        /// Where in the heap it says how to reopen the inode; 0 if nowhere.
        pub reference: AtomicU32,
        /// When `ctime` was recorded, in seconds modulo 2^16.
        pub ctime_noted: AtomicU16,
        /// Type of the file: the type bits of its mode (`S_IFMT`), shifted right by 12.
        pub file_type: AtomicU8,
        /// 1 if it was used since the clock hand last passed.
        pub used: AtomicU8,
        /// 1 if a newer inode has the same identity, so that no look-up finds this one.
        pub replaced: AtomicU8,
        /// 1 if a holder has a duplicate of the descriptor.
        pub held: AtomicU8,
        reserved: [AtomicU8; 2],
        /// The place of the node id if another daemon has chosen it; 0 if not.
        pub foreign_id: AtomicU32,
    }
}

const _: () = assert!(size_of::<InodeRecord>() == 64);

impl Record for InodeRecord {
    fn key(&self) -> &AtomicU64 {
        &self.key
    }
}

impl HasDescriptor for InodeRecord {
    const KIND: Kind = Kind::Inode;

    fn descriptor(&self) -> &DescriptorNumber {
        &self.descriptor
    }
}
