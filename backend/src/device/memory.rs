//! A guest's memory as the rings use it: checked, and guarded against truncation while in use.

use std::io;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::sys::guest_memory::Guarded;

/// Most memory regions of one guest: vhost-user-backend's reply to GET_MAX_MEM_SLOTS.
const MAX_REGIONS: usize = 509;

/// Most regions of one guest under guard at a time: those of the current table, and those of older
/// tables that requests in flight still use.
const MAX_GUARDED_REGIONS: usize = 3 * MAX_REGIONS;

/// One guest's current memory.
///
/// vhost-user-backend keeps an atomic of its own, but puts a new table in use there before the
/// device can check it.
#[derive(Default)]
pub(super) struct MemoryCell {
    current: RwLock<Arc<GuardedMemory>>,
    guarded_regions: Arc<AtomicUsize>,
}

/// The memory of one memory table.
#[derive(Default)]
pub(super) struct GuardedMemory {
    // Fields drop in this order: a guard that outlived its mapping would cover the next mapping at
    // that address.
    guards: Vec<Guarded>,
    _count: Option<RegionCount>,
    mmap: Arc<GuestMemoryMmap>,
}

/// Counts a table's regions in the guest's total until it is dropped.
struct RegionCount {
    total: Arc<AtomicUsize>,
    own: usize,
}

impl MemoryCell {
    /// The current memory. A request in flight keeps it alive.
    pub(super) fn current(&self) -> Arc<GuardedMemory> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Checks and guards `mmap`, and makes it the current memory.
    ///
    /// # Errors
    /// A region extends past the end of its file, or there are too many regions. The previous
    /// memory stays in use.
    pub(super) fn replace(&self, mmap: Arc<GuestMemoryMmap>) -> io::Result<()> {
        if let Some(region) = mmap.iter().find(|region| !is_backed(region)) {
            let (address, len) = (region.start_addr().0, region.len());
            return Err(io::Error::other(format!(
                "the memory region of {len} bytes at {address:#x} extends past the end of its file"
            )));
        }
        let regions = mmap.num_regions();
        let count = RegionCount::new(&self.guarded_regions, regions);
        if regions > MAX_REGIONS || count.total.load(Ordering::Relaxed) > MAX_GUARDED_REGIONS {
            return Err(io::Error::other(format!(
                "a guest sets {regions} memory regions; at most {MAX_REGIONS} are supported"
            )));
        }
        let guards = mmap
            .iter()
            .map(|region| {
                let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
                Guarded::new(region.as_ptr(), len)
            })
            .collect::<io::Result<Vec<_>>>()?;
        let memory = Arc::new(GuardedMemory {
            guards,
            _count: Some(count),
            mmap,
        });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = memory;
        Ok(())
    }
}

impl GuardedMemory {
    /// Whether the frontend truncated a region's file while it was mapped.
    pub(super) fn is_truncated(&self) -> bool {
        self.guards.iter().any(Guarded::is_truncated)
    }
}

impl Deref for GuardedMemory {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        &self.mmap
    }
}

impl RegionCount {
    fn new(total: &Arc<AtomicUsize>, own: usize) -> Self {
        total.fetch_add(own, Ordering::Relaxed);
        Self {
            total: Arc::clone(total),
            own,
        }
    }
}

impl Drop for RegionCount {
    fn drop(&mut self) {
        self.total.fetch_sub(self.own, Ordering::Relaxed);
    }
}

/// Whether a region's file is long enough for it. Only regular files have a length to check.
fn is_backed(region: &GuestRegionMmap) -> bool {
    let Some(offset) = region.file_offset() else {
        return true;
    };
    match offset.file().metadata() {
        Ok(file) if file.is_file() => offset
            .start()
            .checked_add(region.len())
            .is_some_and(|end| end <= file.len()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{FileOffset, GuestAddress};

    use super::*;

    fn memory(regions: u64) -> Arc<GuestMemoryMmap> {
        let ranges: Vec<_> = (0..regions)
            .map(|index| (GuestAddress(index * 0x2000), 0x1000))
            .collect();
        Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("mapped"))
    }

    #[test]
    fn memory_in_use_outlives_its_table_and_counts_until_it_is_dropped() {
        let cell = MemoryCell::default();
        cell.replace(memory(2)).expect("taken");
        let in_use = cell.current();
        cell.replace(memory(3)).expect("taken");
        assert_eq!((in_use.num_regions(), cell.current().num_regions()), (2, 3));
        assert_eq!(cell.guarded_regions.load(Ordering::Relaxed), 5);
        drop(in_use);
        assert_eq!(cell.guarded_regions.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn too_many_regions_are_refused_and_the_previous_memory_stays() {
        let cell = MemoryCell::default();
        cell.replace(memory(1)).expect("taken");
        assert!(cell.replace(memory(510)).is_err());
        assert_eq!(cell.current().num_regions(), 1);
        assert_eq!(cell.guarded_regions.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_region_longer_than_its_file_is_refused() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(0x2000).expect("grown");
        let backing = FileOffset::new(file.try_clone().expect("cloned"), 0);
        let mmap =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), 0x2000, Some(backing))]);
        file.set_len(0x1000).expect("cut");
        let refused = MemoryCell::default().replace(Arc::new(mmap.expect("mapped")));
        assert!(refused.is_err_and(|error| error.to_string().contains("past the end of its file")));
    }
}
