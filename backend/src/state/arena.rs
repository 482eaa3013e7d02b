//! The memory that holds one guest's state: where each part of it lies.
//!
//! The arena is a sparse memory file. Each part has room for the largest guest that the options
//! permit, and takes memory as it fills. Numbers stand for pointers: an entry of a table has an
//! index, a descriptor its number.
//!
//! One process at a time uses the arena, the guest's worker, and it can be killed between any two
//! instructions. So each part says in which order it changes what is in it. All values are atomics,
//! which keeps the compiler to that order.

mod layout;

use std::io;
use std::mem::offset_of;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::time::ClockId;
use thiserror::Error;

pub use self::layout::Limits;
pub(crate) use self::layout::fixed_offsets;
use self::layout::{Layout, LimitsRecord, index_room};
use super::counters::{BLOCKS, Block};
use super::device::DEVICE_WORDS;
use super::files::{FileRecord, LockRecord, SyncfsRecord};
use super::foreign_ids::{ForeignId, ForeignRecord};
use super::heap::{self, ChunkRecord, HeapRecord};
use super::inodes::{InodeRecord, SHARDS};
use super::mounts::{MAX_MOUNTS, MountRecord};
use super::requests::{RequestSlot, RingRecord};
use super::session::SessionRecord;
use super::table::TableRecord;
use crate::crash_hook::LAYOUT_DIFFERENCE;
use crate::holder::client::Holder;
use crate::sys::clock;
use crate::sys::shared_memory::{Shared, SharedMemory, SharedSlice, shared_struct};

/// Version of the layout of all parts. Another version of the daemon that has another layout does
/// not read it.
///
/// It also stands for what follows from the state and is not in it, such as the features that an
/// offer of INIT leads to.
pub const LAYOUT: u32 = 4 + LAYOUT_DIFFERENCE;

/// The arena's first bytes, as a little-endian number.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"GANGPLNK");

shared_struct! {
    /// The beginning of the arena.
    #[derive(Debug, Default)]
    pub struct Header {
        pub(crate) magic: AtomicU64,
        pub(crate) layout: AtomicU32,
        /// Workers that ended abnormally.
        pub deaths: AtomicU32,
        /// The last such worker's signal; 0 if it found a fault in itself.
        pub last_signal: AtomicU32,
        /// 1 if descriptors that the state refers to are lost, and the state has not been corrected
        /// yet.
        pub is_incomplete: AtomicU32,
        /// Blocks of counters that were ever used.
        pub counter_blocks: AtomicU32,
        /// When the last such worker ended (`CLOCK_MONOTONIC`), in nanoseconds; 0 once the guest is
        /// served again.
        pub died: AtomicU64,
        /// How long the guest was not served after the last death, in nanoseconds.
        pub last_pause: AtomicU64,
        /// The longest such time.
        pub longest_pause: AtomicU64,
        /// The sum of all such times.
        pub paused: AtomicU64,
        /// When the guest connected, in seconds since the epoch.
        pub connected: AtomicU64,
        /// Which copy of the device's state is valid; see [`super::device`].
        pub device: AtomicU64,
        /// The FUSE session.
        pub session: SessionRecord,
        /// What the worker derives hashes from. Chosen at random, so that no guest can choose
        /// inodes whose hashes collide.
        pub hash_seed: AtomicU64,
        /// The descriptors with lower numbers may have owners.
        pub descriptors_end: AtomicU32,
        /// 1 once the guest's connection has ended: what the guest has is being freed. 2 once the
        /// connection belongs to another guest's processes, which have its session.
        pub is_ending: AtomicU32,
        /// Number of mounts.
        pub mounts: AtomicU32,
        /// The guest's process whose requests change nothing (`--events`); 0 if there is none.
        pub waker: AtomicU32,
        /// The heap.
        pub heap: HeapRecord,
        /// The shards of the inode table.
        pub(crate) shards: [TableRecord; SHARDS],
        /// The table of open files.
        pub(crate) files: TableRecord,
        /// The table of locks.
        pub(crate) locks: TableRecord,
        /// The node ids that another daemon has chosen.
        foreign_nodes: ForeignRecord,
        /// The handles that another daemon has chosen.
        foreign_handles: ForeignRecord,
        /// What the arena has room for.
        limits: LimitsRecord,
        /// When the guest's connection was lost (`CLOCK_MONOTONIC`), in nanoseconds, while its
        /// session is kept; otherwise 0. Earlier programs leave it 0.
        pub disconnected: AtomicU64,
        /// 1 from when a worker has found the connection lost until its keeper has noted that: the
        /// worker waits for its requests. Earlier programs leave it 0.
        pub is_leaving: AtomicU32,
    }
}

/// Why the memory that another process has passed is no state to go on with.
#[derive(Debug, Error)]
pub enum AttachError {
    /// It is something else.
    #[error("it is not a guest's state")]
    NoArena,
    /// Another version of the daemon has made it.
    #[error("it has version {found}, and this program reads version {LAYOUT}")]
    Layout {
        /// The version that it has.
        found: u32,
    },
    /// It cannot be mapped.
    #[error("it cannot be mapped")]
    Map(#[from] io::Error),
}

/// The memory of one guest's state.
#[derive(Debug)]
pub struct Arena {
    memory: Arc<SharedMemory>,
    header: Part<Header>,
    layout: Layout,
    /// What holds descriptors of the guest outside of the daemon, if anything does.
    holder: OnceLock<Arc<Holder>>,
}

/// A part of an arena: an array, which keeps the arena mapped.
pub type Part<T> = SharedSlice<T>;

impl Arena {
    /// An arena with nothing in it.
    ///
    /// # Errors
    /// The memory cannot be mapped, or the system has no random numbers.
    pub fn new(limits: Limits) -> io::Result<Arc<Self>> {
        let layout = Layout::new(limits);
        let memory = Arc::new(SharedMemory::new("gangplank-guest", layout.len)?);
        let header = Part::new(&memory, 0, 1);
        let arena = Self {
            memory,
            header,
            layout,
            holder: OnceLock::new(),
        };
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        let header = arena.header();
        header
            .hash_seed
            .store(u64::from_ne_bytes(seed), Ordering::Relaxed);
        header.limits.set(limits);
        let now = clock::now(ClockId::Realtime).max(0).cast_unsigned();
        header
            .connected
            .store(now / 1_000_000_000, Ordering::Relaxed);
        header.layout.store(LAYOUT, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(Arc::new(arena))
    }

    /// The arena in a memory file that another process has made, which may be of another version.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(file: OwnedFd) -> Result<Arc<Self>, AttachError> {
        let beginning = SharedMemory::attach(file.try_clone()?, size_of::<Header>())?;
        let header = Part::<Header>::new(&Arc::new(beginning), 0, 1);
        Self::check_header(&header[0])?;
        let layout = Layout::new(header[0].limits.get());
        let memory = Arc::new(SharedMemory::attach(file, layout.len)?);
        Ok(Arc::new(Self {
            header: Part::new(&memory, 0, 1),
            memory,
            layout,
            holder: OnceLock::new(),
        }))
    }

    /// From now on, `holder` holds descriptors of the guest.
    pub fn set_holder(&self, holder: Arc<Holder>) {
        // There is one for each process.
        let _ = self.holder.set(holder);
    }

    /// What holds descriptors of the guest outside of the daemon.
    pub fn holder(&self) -> Option<&Arc<Holder>> {
        self.holder.get()
    }

    /// Checks that a memory file that another process has made is an arena of this version.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn check(file: OwnedFd) -> Result<(), AttachError> {
        let beginning = SharedMemory::attach(file, size_of::<Header>())?;
        Self::check_header(&Part::<Header>::new(&Arc::new(beginning), 0, 1)[0])
    }

    fn check_header(header: &Header) -> Result<(), AttachError> {
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(AttachError::NoArena);
        }
        match header.layout.load(Ordering::Relaxed) {
            LAYOUT => Ok(()),
            found => Err(AttachError::Layout { found }),
        }
    }

    /// The memory file; `None` if the process's limit of file sizes did not permit one.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.memory.file()
    }

    /// The beginning.
    pub fn header(&self) -> &Header {
        // The array has one element.
        &self.header[0]
    }

    /// The beginning, as an array of one element.
    pub fn header_part(&self) -> Part<Header> {
        self.header.clone()
    }

    /// The table of a shard's inodes, one element.
    pub fn inode_table(&self, shard: usize) -> Part<TableRecord> {
        self.part(offset_of!(Header, shards), shard, 1)
    }

    /// What each thread counts.
    pub fn counters(&self) -> Part<Block> {
        self.part(self.layout.counters, 0, BLOCKS)
    }

    /// The record of ring number `index`; `None` if there is no such ring.
    pub fn ring(&self, index: usize) -> Option<Part<RingRecord>> {
        let has_ring = index < self.layout.rings;
        has_ring.then(|| self.part(self.layout.ring_records, index, 1))
    }

    /// The slots of the requests of ring number `index`; `None` if there is no such ring.
    pub fn request_slots(&self, index: usize) -> Option<Part<RequestSlot>> {
        let has_ring = index < self.layout.rings;
        has_ring.then(|| self.part(self.layout.request_slots, index, self.layout.ring_size))
    }

    /// The two copies of the device's state.
    pub fn device(&self, copy: usize) -> Part<AtomicU64> {
        self.part(self.layout.device, copy.min(1), DEVICE_WORDS)
    }

    /// The records of a shard's inodes.
    pub fn inodes(&self, shard: usize) -> Part<InodeRecord> {
        let count = self.layout.inodes_per_shard;
        self.part(self.layout.inodes, shard, count)
    }

    /// A bit for each record of a shard's inodes: whether it is used.
    pub fn used_inodes(&self, shard: usize) -> Part<AtomicU64> {
        self.part(
            self.layout.used_inodes,
            shard,
            self.layout.inodes_per_shard / 64,
        )
    }

    /// The places of a shard's index.
    pub fn inode_index(&self, shard: usize) -> Part<AtomicU64> {
        let count = index_room(self.layout.inodes_per_shard);
        self.part(self.layout.inode_index, shard, count)
    }

    /// The owner of each descriptor, by its number.
    pub fn descriptor_owners(&self) -> Part<AtomicU32> {
        self.part(self.layout.descriptor_owners, 0, self.layout.descriptors)
    }

    /// The table of open files, one element; the records; a bit for each record: whether it is
    /// used.
    pub fn files(&self) -> (Part<TableRecord>, Part<FileRecord>, Part<AtomicU64>) {
        let count = self.layout.descriptors;
        (
            self.part(offset_of!(Header, files), 0, 1),
            self.part(self.layout.files, 0, count),
            self.part(self.layout.used_files, 0, count / 64),
        )
    }

    /// The same of locks.
    pub fn locks(&self) -> (Part<TableRecord>, Part<LockRecord>, Part<AtomicU64>) {
        let count = self.layout.descriptors;
        (
            self.part(offset_of!(Header, locks), 0, 1),
            self.part(self.layout.locks, 0, count),
            self.part(self.layout.used_locks, 0, count / 64),
        )
    }

    /// What is open of each mount for SYNCFS, by the mount's index.
    pub fn syncfs_mounts(&self) -> Part<SyncfsRecord> {
        self.part(self.layout.syncfs_mounts, 0, MAX_MOUNTS)
    }

    /// The records of mounts.
    pub fn mounts(&self) -> Part<MountRecord> {
        self.part(self.layout.mounts, 0, MAX_MOUNTS)
    }

    /// The node ids that another daemon has chosen: one element, and the places.
    pub fn foreign_nodes(&self) -> (Part<ForeignRecord>, Part<ForeignId>) {
        let places = self.layout.foreign_node_places;
        (
            self.part(offset_of!(Header, foreign_nodes), 0, 1),
            self.part(self.layout.foreign_nodes, 0, places),
        )
    }

    /// The same of handles.
    pub fn foreign_handles(&self) -> (Part<ForeignRecord>, Part<ForeignId>) {
        let places = self.layout.foreign_handle_places;
        (
            self.part(offset_of!(Header, foreign_handles), 0, 1),
            self.part(self.layout.foreign_handles, 0, places),
        )
    }

    /// The records of the heap's chunks.
    pub fn heap_chunks(&self) -> Part<ChunkRecord> {
        self.part(self.layout.heap_chunks, 0, self.layout.chunks)
    }

    /// The memory of the heap's chunks.
    pub fn heap_words(&self) -> Part<AtomicU64> {
        let words = self.layout.chunks * heap::CHUNK / size_of::<AtomicU64>();
        self.part(self.layout.heap_words, 0, words)
    }

    /// Bytes of memory that the arena takes.
    ///
    /// # Errors
    /// Those of fstat(2); `Unsupported` if it has no file.
    #[cfg(test)]
    pub(crate) fn used_bytes(&self) -> io::Result<u64> {
        let file = self.memory.file().ok_or(io::ErrorKind::Unsupported)?;
        let blocks = rustix::fs::fstat(file)?.st_blocks;
        Ok(blocks.unsigned_abs() * 512)
    }

    /// The array of `count` elements that is number `index` from `offset` on.
    fn part<T: Shared>(&self, offset: usize, index: usize, count: usize) -> Part<T> {
        Part::new(&self.memory, offset + index * count * size_of::<T>(), count)
    }
}

#[cfg(test)]
impl Arena {
    /// An arena of [`Limits::SMALL`].
    pub(crate) fn small() -> Arc<Self> {
        Self::new(Limits::SMALL).expect("an arena")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_begins_empty_and_its_parts_do_not_overlap() {
        let arena = Arena::small();
        assert_eq!(arena.header().deaths.load(Ordering::Relaxed), 0);
        for shard in 0..SHARDS {
            let (inodes, used) = (arena.inodes(shard), arena.used_inodes(shard));
            let index = arena.inode_index(shard);
            let (last, end) = (inodes.len() - 1, index.len() - 1);
            assert_eq!(inodes[last].key.swap(1, Ordering::Relaxed), 0);
            assert_eq!(used[last / 64].swap(2, Ordering::Relaxed), 0);
            assert_eq!(index[0].swap(3, Ordering::Relaxed), 0);
            assert_eq!(index[end].swap(4, Ordering::Relaxed), 0);
        }
        let (mounts, chunks) = (arena.mounts(), arena.heap_chunks());
        let words = arena.heap_words();
        assert_eq!(mounts[0].mount_id.swap(5, Ordering::Relaxed), 0);
        let last = &mounts[mounts.len() - 1].references;
        assert_eq!(last.swap(6, Ordering::Relaxed), 0);
        assert_eq!(chunks.len() * heap::CHUNK / 8, words.len());
        for word in [&words[0], &words[words.len() - 1]] {
            assert_eq!(word.swap(7, Ordering::Relaxed), 0);
        }
        assert_eq!(arena.header().magic.load(Ordering::Relaxed), MAGIC);
    }

    #[test]
    fn another_process_finds_all_parts_where_they_are() {
        let arena = Arena::small();
        let last = arena.heap_words().len() - 1;
        arena.heap_words()[last].store(9, Ordering::Relaxed);
        let file = || arena.file().unwrap().try_clone_to_owned().unwrap();
        let other = Arena::attach(file()).unwrap();
        assert_eq!(other.heap_words()[last].load(Ordering::Relaxed), 9);
        arena.header().layout.store(77, Ordering::Relaxed);
        let error = Arena::attach(file()).unwrap_err().to_string();
        assert!(error.contains("version 77"), "{error}");
        arena.header().magic.store(0, Ordering::Relaxed);
        let error = Arena::attach(file()).unwrap_err();
        assert!(matches!(error, AttachError::NoArena));
        // A file that is shorter than its limits say.
        let arena = Arena::small();
        arena.header().limits.rings.store(200, Ordering::Relaxed);
        let file = arena.file().unwrap().try_clone_to_owned().unwrap();
        let error = Arena::attach(file).unwrap_err();
        assert!(matches!(error, AttachError::Map(_)));
    }

    #[test]
    fn the_largest_guest_takes_address_space_and_no_memory() {
        let limits = Limits {
            inode_bytes: 1 << 40,
            descriptors: 1 << 20,
            rings: 64,
            ring_size: 1 << 15,
        };
        let arena = Arena::new(limits).expect("an arena");
        assert_eq!(arena.inodes(15).len(), 1 << 24);
        let used = arena.used_bytes().expect("attributes");
        assert!(used <= 16 * 4096, "{used} bytes");
    }
}
