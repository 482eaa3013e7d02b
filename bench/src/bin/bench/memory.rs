//! Memory shared with a daemon. It is allocated from front to back, and reused from a mark on for
//! each workload.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use gangplank_driver::ring::RingMemory;
use gangplank_vhost_user::client::Region;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// The guest physical address of the first byte.
const BASE: u64 = 0x1_0000_0000;

/// Bytes of a page, the unit of scattered file data.
pub(crate) const PAGE: usize = 4096;

/// The memory. Offsets count from its beginning, and always come from the driver itself.
pub(crate) struct Memory {
    file: File,
    map: RingMap,
    len: usize,
    taken: usize,
}

impl Memory {
    /// Makes `len` bytes. The host allocates them on first use.
    pub(crate) fn new(len: usize) -> Result<Self> {
        let what = "making memory to share with a daemon";
        let file = File::from(memfd_create("bench", MemfdFlags::CLOEXEC).context(what)?);
        ftruncate(&file, len as u64).context(what)?;
        let backing = FileOffset::new(file.try_clone().context(what)?, 0);
        let map = RingMap(Arc::new(MmapRegion::from_file(backing, len).context(what)?));
        Ok(Self {
            file,
            map,
            len,
            taken: 0,
        })
    }

    /// The memory as a region of SET_MEM_TABLE.
    pub(crate) fn region(&self) -> Region<'_> {
        Region {
            guest_address: BASE,
            len: self.len as u64,
            file: self.file.as_fd(),
            mmap_offset: 0,
        }
    }

    /// The guest physical address of an offset.
    pub(crate) const fn address(offset: usize) -> u64 {
        BASE + offset as u64
    }

    /// Takes `len` bytes at a multiple of `align`, a power of two.
    pub(crate) fn take(&mut self, len: usize, align: usize) -> Result<usize> {
        let offset = self.taken.next_multiple_of(align);
        let end = offset + len;
        anyhow::ensure!(
            end <= self.len,
            "{len} bytes more than there are to be shared with a daemon"
        );
        self.taken = end;
        Ok(offset)
    }

    /// The current end, for [`Memory::give_back_to`].
    pub(crate) const fn mark(&self) -> usize {
        self.taken
    }

    /// Releases everything after the mark.
    pub(crate) fn give_back_to(&mut self, mark: usize) {
        self.taken = mark;
    }

    /// The memory as its rings use it.
    pub(crate) fn for_ring(&self) -> RingMap {
        self.map.clone()
    }

    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        self.map.slice(offset, len)
    }

    /// Copies `bytes` in.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        self.slice(offset, bytes.len()).copy_from(bytes);
    }

    /// Fills `bytes` from the memory.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.slice(offset, bytes.len()).copy_to(bytes);
    }
}

/// A handle to the mapped memory.
#[derive(Clone)]
pub(crate) struct RingMap(Arc<MmapRegion>);

impl RingMap {
    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        self.0
            .get_slice(offset, len)
            .expect("offsets are the driver's own, and within its memory")
    }

    fn at(&self, address: u64, len: usize) -> VolatileSlice<'_> {
        let offset = usize::try_from(address.wrapping_sub(BASE)).unwrap_or(usize::MAX);
        self.slice(offset, len)
    }
}

impl RingMemory for RingMap {
    fn write(&self, address: u64, bytes: &[u8]) {
        self.at(address, bytes.len()).copy_from(bytes);
    }

    fn store<T: AtomicAccess>(&self, address: u64, value: T) {
        self.at(address, size_of::<T>())
            .store(value, 0, Ordering::Release)
            .expect("rings are aligned");
    }

    fn load<T: AtomicAccess>(&self, address: u64) -> T {
        self.at(address, size_of::<T>())
            .load(0, Ordering::Acquire)
            .expect("rings are aligned")
    }
}
