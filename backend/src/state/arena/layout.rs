//! What an arena has room for, and where each part of it lies.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Header;
use crate::state::counters::{BLOCKS, Block};
use crate::state::device::DEVICE_WORDS;
use crate::state::files::{FileRecord, LockRecord, SyncfsRecord};
use crate::state::foreign_ids::ForeignId;
use crate::state::heap::{self, ChunkRecord};
use crate::state::inodes::{InodeRecord, SHARDS};
use crate::state::mounts::{MAX_MOUNTS, MountRecord};
use crate::state::requests::{RequestSlot, RingRecord};
use crate::sys::shared_memory::shared_struct;

/// Bytes that one inode takes at most of the memory that `--max-inode-memory` permits.
const INODE_BYTES: u64 = 160;

/// Inodes of a shard at least and at most: an index has 24 bits (`Key`).
const INODES_PER_SHARD: (u64, u64) = (1 << 12, 1 << 24);

/// Descriptors whose owners can be noted: more than the kernel permits a process by default
/// (`fs.nr_open`, 2^20).
const MAX_DESCRIPTORS: u64 = 1 << 22;

/// What the arena has room for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of memory that the guest's inodes may take.
    pub inode_bytes: u64,
    /// Descriptors that the worker may have.
    pub descriptors: u64,
    /// Rings of the device.
    pub rings: usize,
    /// Descriptors of the largest ring.
    pub ring_size: usize,
}

shared_struct! {
    /// [`Limits`], from which the offsets of all parts follow.
    #[derive(Debug, Default)]
    pub(super) struct LimitsRecord {
        pub(super) inode_bytes: AtomicU64,
        pub(super) descriptors: AtomicU64,
        pub(super) rings: AtomicU32,
        pub(super) ring_size: AtomicU32,
    }
}

impl LimitsRecord {
    pub(super) fn set(&self, limits: Limits) {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        self.inode_bytes
            .store(limits.inode_bytes, Ordering::Relaxed);
        self.descriptors
            .store(limits.descriptors, Ordering::Relaxed);
        self.rings.store(number(limits.rings), Ordering::Relaxed);
        self.ring_size
            .store(number(limits.ring_size), Ordering::Relaxed);
    }

    /// Within bounds, whatever another process has written.
    pub(super) fn get(&self) -> Limits {
        let number = |number: &AtomicU32| number.load(Ordering::Relaxed) as usize;
        Limits {
            inode_bytes: self.inode_bytes.load(Ordering::Relaxed),
            descriptors: self.descriptors.load(Ordering::Relaxed),
            rings: number(&self.rings).min(1 << 8),
            ring_size: number(&self.ring_size).min(1 << 16),
        }
    }
}

/// Byte offsets and lengths of the parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) inodes_per_shard: usize,
    pub(super) rings: usize,
    pub(super) ring_size: usize,
    pub(super) counters: usize,
    pub(super) ring_records: usize,
    pub(super) request_slots: usize,
    pub(super) device: usize,
    pub(super) inodes: usize,
    pub(super) used_inodes: usize,
    pub(super) inode_index: usize,
    pub(super) descriptors: usize,
    pub(super) descriptor_owners: usize,
    pub(super) files: usize,
    pub(super) used_files: usize,
    pub(super) locks: usize,
    pub(super) used_locks: usize,
    pub(super) syncfs_mounts: usize,
    pub(super) mounts: usize,
    pub(super) foreign_nodes: usize,
    pub(super) foreign_node_places: usize,
    pub(super) foreign_handles: usize,
    pub(super) foreign_handle_places: usize,
    pub(super) chunks: usize,
    pub(super) heap_chunks: usize,
    pub(super) heap_words: usize,
    pub(super) len: usize,
}

impl Layout {
    pub(super) fn new(limits: Limits) -> Self {
        // A shard may get more than its share.
        let even = limits.inode_bytes / INODE_BYTES / SHARDS as u64;
        let (least, most) = INODES_PER_SHARD;
        let inodes_per_shard = (even + even / 4).clamp(least, most).next_power_of_two();
        let inodes_per_shard = usize::try_from(inodes_per_shard).unwrap_or(1 << 24);
        let descriptors = limits.descriptors.clamp(1 << 10, MAX_DESCRIPTORS);
        let descriptors = descriptors.next_multiple_of(64);
        let descriptors = usize::try_from(descriptors).unwrap_or(1 << 20);
        // The first one is never used.
        let chunks = limits.inode_bytes / heap::CHUNK as u64 + heap::SPARE_CHUNKS + 1;
        let chunks = usize::try_from(chunks.min(heap::MAX_CHUNKS)).unwrap_or(1 << 24);
        // Half of the places stay empty.
        let foreign_node_places = 2 * SHARDS * inodes_per_shard;
        let foreign_handle_places = (2 * descriptors).next_power_of_two();
        let mut end = 0;
        let mut place = |bytes: usize| {
            let start = end;
            end = start + bytes.next_multiple_of(rustix::param::page_size());
            start
        };
        place(size_of::<Header>());
        Self {
            inodes_per_shard,
            rings: limits.rings,
            ring_size: limits.ring_size,
            counters: place(BLOCKS * size_of::<Block>()),
            ring_records: place(limits.rings * size_of::<RingRecord>()),
            request_slots: place(limits.rings * limits.ring_size * size_of::<RequestSlot>()),
            device: place(2 * DEVICE_WORDS * size_of::<AtomicU64>()),
            inodes: place(SHARDS * inodes_per_shard * size_of::<InodeRecord>()),
            used_inodes: place(SHARDS * inodes_per_shard / 8),
            descriptors,
            descriptor_owners: place(descriptors * size_of::<AtomicU32>()),
            files: place(descriptors * size_of::<FileRecord>()),
            used_files: place(descriptors / 8),
            locks: place(descriptors * size_of::<LockRecord>()),
            used_locks: place(descriptors / 8),
            syncfs_mounts: place(MAX_MOUNTS * size_of::<SyncfsRecord>()),
            inode_index: place(SHARDS * index_room(inodes_per_shard) * size_of::<AtomicU64>()),
            mounts: place(MAX_MOUNTS * size_of::<MountRecord>()),
            foreign_nodes: place(foreign_node_places * size_of::<ForeignId>()),
            foreign_node_places,
            foreign_handles: place(foreign_handle_places * size_of::<ForeignId>()),
            foreign_handle_places,
            chunks,
            heap_chunks: place(chunks * size_of::<ChunkRecord>()),
            heap_words: place(chunks * heap::CHUNK),
            len: end,
        }
    }
}

/// The byte at which the counters begin, and the one at which the rings do, whatever the limits
/// are.
pub(crate) fn fixed_offsets() -> (usize, usize) {
    let page = rustix::param::page_size();
    let counters = size_of::<Header>().next_multiple_of(page);
    let rings = counters + (BLOCKS * size_of::<Block>()).next_multiple_of(page);
    (counters, rings)
}

/// Places that a shard's index needs for all its sizes.
pub(super) const fn index_room(inodes: usize) -> usize {
    // The largest has twice as many places as inodes, and lies behind all smaller ones.
    4 * inodes
}

#[cfg(test)]
impl Limits {
    /// Enough for most tests.
    pub(crate) const SMALL: Self = Self {
        inode_bytes: 1 << 20,
        descriptors: 1024,
        rings: 2,
        ring_size: 8,
    };
}
