//! The records of the files and directories that a guest has open, and of the locks that it holds
//! on the host's files. Each kind is one table ([`super::slab`]) under a lock of the worker's.

use std::sync::atomic::{AtomicU32, AtomicU64};

use super::descriptors::{DescriptorNumber, HasDescriptor, Kind};
use super::slab::Record;
use crate::sys::shared_memory::shared_struct;

shared_struct! {
    /// One open file or directory.
    #[derive(Debug, Default)]
    pub struct FileRecord {
        /// The key; 0 if the entry is unused. Stored last, cleared first.
        pub key: AtomicU64,
        /// The node that is open.
        pub node: AtomicU64,
        /// The descriptor.
        pub descriptor: DescriptorNumber,
        /// What the worker knows of the file, as it packs it.
        pub flags: AtomicU32,
        /// Of a directory, the index of the mount. Of a regular file, and of any that could not be
        /// opened again, the flags of open(2) to try again with.
        pub mount: AtomicU32,
        /// The place of the handle if another daemon has chosen it; 0 if not.
        pub foreign_id: AtomicU32,
    }
}

shared_struct! {
    /// An open file description that holds the POSIX locks of one owner on one inode.
    #[derive(Debug, Default)]
    pub struct LockRecord {
        /// The key; 0 if the entry is unused. Stored last, cleared first.
        pub key: AtomicU64,
        /// The inode.
        pub node: AtomicU64,
        /// The owner, a number of the guest's.
        pub owner: AtomicU64,
        /// The descriptor.
        pub descriptor: DescriptorNumber,
        reserved: AtomicU32,
    }
}

shared_struct! {
    /// A mount that the guest has come upon, and what is open of it for SYNCFS. The records are an
    /// array by the mount's index.
    #[derive(Debug, Default)]
    pub struct SyncfsRecord {
        /// An inode of the mount; 0 if the mount is not known. Stored last, cleared first.
        pub anchor: AtomicU64,
        /// The open descriptor. Stored after the descriptor's owner, and cleared before it.
        pub descriptor: DescriptorNumber,
        /// 1: the guest knows of the mount. 2: the guest has written to it.
        pub flags: AtomicU32,
    }
}

impl Record for FileRecord {
    fn key(&self) -> &AtomicU64 {
        &self.key
    }
}

impl Record for LockRecord {
    fn key(&self) -> &AtomicU64 {
        &self.key
    }
}

impl HasDescriptor for FileRecord {
    const KIND: Kind = Kind::File;

    fn descriptor(&self) -> &DescriptorNumber {
        &self.descriptor
    }
}

impl HasDescriptor for LockRecord {
    const KIND: Kind = Kind::Lock;

    fn descriptor(&self) -> &DescriptorNumber {
        &self.descriptor
    }
}
