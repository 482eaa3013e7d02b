//! A guest's memory as the rings use it: checked, and guarded against truncation while in use.

use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gangplank_service::rate_limited;
use parking_lot::RwLock;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::memory_limits::MemoryLimits;
use crate::sys::file::file_system_magic;
use crate::sys::guest_memory::Guarded;

/// How often the limits of a guest's memory may be reached at a time: by the current table, and by
/// older tables that requests in flight still use.
const MAX_TABLES: u64 = 3;

/// File systems of memory (memfd, hugetlbfs) and of local disks (`linux/magic.h`;
/// `fs/xfs/xfs_format.h`). overlayfs is none: it may lie on any other.
const PROMPT: [u64; 6] = [
    0x0102_1994, // tmpfs
    0x9584_58f6, // hugetlbfs
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
];

/// One guest's current memory.
///
/// vhost-user-backend keeps an atomic of its own, but puts a new table in use there before the
/// device can check it.
pub(super) struct MemoryCell {
    current: RwLock<Arc<GuardedMemory>>,
    limits: MemoryLimits,
    in_use: Arc<InUse>,
}

/// The memory of one memory table.
#[derive(Default)]
pub(super) struct GuardedMemory {
    // Fields drop in this order: a guard that outlived its mapping would cover the next mapping at
    // that address.
    guards: Vec<Guarded>,
    may_stall: bool,
    _share: Option<InUseShare>,
    mmap: Arc<GuestMemoryMmap>,
}

/// What all tables of a guest have mapped, older ones that requests in flight use included.
#[derive(Default)]
struct InUse {
    regions: AtomicU64,
    bytes: AtomicU64,
}

/// One table's share in [`InUse`], until it is dropped.
struct InUseShare {
    total: Arc<InUse>,
    regions: u64,
    bytes: u64,
}

impl MemoryCell {
    /// No memory yet. [`super::memory_limits`] checks each table; the cell checks all in use.
    pub(super) fn new(limits: MemoryLimits) -> Self {
        Self {
            current: RwLock::default(),
            limits,
            in_use: Arc::default(),
        }
    }

    /// The current memory. A request in flight keeps it alive.
    pub(super) fn current(&self) -> Arc<GuardedMemory> {
        Arc::clone(&self.current.read())
    }

    /// Checks and guards `mmap`, and makes it the current memory.
    ///
    /// # Errors
    /// A region extends past the end of its file, or requests in flight still use too many older
    /// tables. The previous memory stays in use.
    pub(super) fn replace(&self, mmap: Arc<GuestMemoryMmap>) -> io::Result<()> {
        if let Some(region) = mmap.iter().find(|region| !is_backed(region)) {
            let (address, len) = (region.start_addr().0, region.len());
            return Err(io::Error::other(format!(
                "the memory region of {len} bytes at {address:#x} extends past the end of its file"
            )));
        }
        let share = InUseShare::new(&self.in_use, &mmap);
        if self.in_use.exceeds(self.limits) {
            return Err(io::Error::other(
                "requests in flight still use too many older memory tables; raise \
                 --max-guest-memory or --max-memory-regions if that is not enough",
            ));
        }
        let guards = mmap
            .iter()
            .map(|region| {
                let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
                Guarded::new(region.as_ptr(), len)
            })
            .collect::<io::Result<Vec<_>>>()?;
        let may_stall = !mmap.iter().all(is_always_there);
        if may_stall {
            rate_limited!(
                info,
                "the guest's memory is a file that is neither memory nor on a local disk; file \
                 data is copied on its way, which is slower than with memfd or /dev/shm"
            );
        }
        let memory = Arc::new(GuardedMemory {
            guards,
            may_stall,
            _share: Some(share),
            mmap,
        });
        *self.current.write() = memory;
        Ok(())
    }
}

impl GuardedMemory {
    /// Whether the frontend truncated a region's file while it was mapped.
    pub(super) fn is_truncated(&self) -> bool {
        self.guards.iter().any(Guarded::is_truncated)
    }

    /// Whether an access may wait for somebody other than this host's kernel and disks.
    pub(super) const fn may_stall(&self) -> bool {
        self.may_stall
    }
}

impl Deref for GuardedMemory {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        &self.mmap
    }
}

impl InUse {
    /// Whether it is more than [`MAX_TABLES`] tables may have.
    fn exceeds(&self, limits: MemoryLimits) -> bool {
        let regions = u64::try_from(limits.regions).unwrap_or(u64::MAX);
        self.regions.load(Ordering::Relaxed) > regions.saturating_mul(MAX_TABLES)
            || self.bytes.load(Ordering::Relaxed) > limits.bytes.saturating_mul(MAX_TABLES)
    }
}

impl InUseShare {
    fn new(total: &Arc<InUse>, mmap: &GuestMemoryMmap) -> Self {
        let regions = u64::try_from(mmap.num_regions()).unwrap_or(u64::MAX);
        // The mapped regions fit into the address space, and so does their sum.
        let bytes = mmap.iter().map(GuestMemoryRegion::len).sum();
        total.regions.fetch_add(regions, Ordering::Relaxed);
        total.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self {
            total: Arc::clone(total),
            regions,
            bytes,
        }
    }
}

impl Drop for InUseShare {
    fn drop(&mut self) {
        self.total
            .regions
            .fetch_sub(self.regions, Ordering::Relaxed);
        self.total.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
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

/// Whether the pages of a region come from the host's memory or disks. Those of other file systems
/// may come from a server that never answers: a FUSE server of the frontend's own user, for one.
fn is_always_there(region: &GuestRegionMmap) -> bool {
    let Some(offset) = region.file_offset() else {
        return true;
    };
    let file = offset.file();
    // The file system of a device's file says nothing about its memory.
    file.metadata().is_ok_and(|file| file.is_file())
        && file_system_magic(file.as_fd()).is_ok_and(|magic| PROMPT.contains(&magic))
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

    fn cell(bytes: u64, regions: usize) -> MemoryCell {
        MemoryCell::new(MemoryLimits { bytes, regions })
    }

    fn in_use(cell: &MemoryCell) -> (u64, u64) {
        let InUse { regions, bytes } = &*cell.in_use;
        (
            regions.load(Ordering::Relaxed),
            bytes.load(Ordering::Relaxed),
        )
    }

    #[test]
    fn memory_in_use_outlives_its_table_and_counts_until_it_is_dropped() {
        let cell = cell(u64::MAX, 509);
        cell.replace(memory(2)).expect("taken");
        let current = cell.current();
        cell.replace(memory(3)).expect("taken");
        assert_eq!(
            (current.num_regions(), cell.current().num_regions()),
            (2, 3)
        );
        assert_eq!(in_use(&cell), (5, 0x5000));
        drop(current);
        assert_eq!(in_use(&cell), (3, 0x3000));
    }

    #[test]
    fn requests_in_flight_keep_no_more_than_three_tables() {
        for cell in [cell(u64::MAX, 2), cell(0x2000, 509)] {
            let mut used = Vec::new();
            for _ in 0..3 {
                cell.replace(memory(2)).expect("taken");
                used.push(cell.current());
            }
            assert!(cell.replace(memory(1)).is_err());
            assert_eq!(cell.current().num_regions(), 2, "the memory before stays");
            assert_eq!(in_use(&cell), (6, 0x6000));
            used.clear();
            cell.replace(memory(1)).expect("taken");
        }
    }

    #[test]
    fn only_memory_of_the_hosts_own_is_always_there() {
        let backed_by = |file: std::fs::File, len: usize| {
            let backing = FileOffset::new(file, 0);
            let range = (GuestAddress(0), len, Some(backing));
            let cell = cell(u64::MAX, 509);
            let mmap = GuestMemoryMmap::from_ranges_with_files([range]).expect("mapped");
            cell.replace(Arc::new(mmap)).expect("taken");
            cell.current().may_stall()
        };
        let memfd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC);
        let memfd = std::fs::File::from(memfd.expect("made"));
        memfd.set_len(0x1000).expect("grown");
        assert!(!backed_by(memfd, 0x1000));
        let open = std::fs::File::options().read(true).write(true).clone();
        assert!(backed_by(open.open("/dev/zero").expect("opened"), 0x1000));
    }

    #[test]
    fn a_region_longer_than_its_file_is_refused() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(0x2000).expect("grown");
        let backing = FileOffset::new(file.try_clone().expect("cloned"), 0);
        let mmap =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), 0x2000, Some(backing))]);
        file.set_len(0x1000).expect("cut");
        let refused = cell(u64::MAX, 509).replace(Arc::new(mmap.expect("mapped")));
        assert!(refused.is_err_and(|error| error.to_string().contains("past the end of its file")));
    }
}
