//! A guest's memory: the table of its regions, and access to single bytes.
//!
//! Nothing is mapped: memory is read and written by its descriptor. A guest that truncates its
//! memory then causes an error; a mapping would end the process by SIGBUS.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gangplank_vhost_user::message::{MemoryRegion, MemoryTableHead, payload};
use rustix::io::Errno;

/// Regions of a table at most (vhost-user, "Memory regions description").
const MAX_REGIONS: usize = 8;

/// Bytes of a table before its regions: their count and padding.
const HEAD_LEN: usize = size_of::<MemoryTableHead>();

/// Bytes of a region in a table.
const REGION_LEN: usize = size_of::<MemoryRegion>();

/// Why a memory table is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The payload's length does not fit its count of regions.
    #[error("a memory table of {regions} regions has {len} bytes")]
    Length {
        /// Regions it counts.
        regions: usize,
        /// Bytes of its payload.
        len: usize,
    },
    /// Each region has a descriptor, and each descriptor a region.
    #[error("a memory table of {regions} regions has {descriptors} descriptors")]
    Descriptors {
        /// Regions it counts.
        regions: usize,
        /// Descriptors beside it.
        descriptors: usize,
    },
    /// A region is empty, or its end exceeds the address space or the file's largest offset.
    #[error("the memory region of {len} bytes at {address:#x} is empty or ends out of range")]
    Region {
        /// Guest address.
        address: u64,
        /// Bytes.
        len: u64,
    },
    /// Two regions have an address in common.
    #[error("two memory regions overlap at {0:#x}")]
    Overlap(u64),
}

/// A range of the guest's memory.
#[derive(Debug)]
struct Region {
    /// Guest physical address of its first byte.
    guest: u64,
    len: u64,
    /// Address of its first byte in the guest's virtual machine monitor.
    user: u64,
    /// Offset of its first byte in the file.
    offset: u64,
    file: OwnedFd,
}

impl Region {
    /// Offset in the file of the `len` bytes at `address`, if the region has them all. `first` is
    /// the region's address in the same address space.
    fn offset_in_file(&self, first: u64, address: u64, len: u64) -> Option<u64> {
        let offset = address.checked_sub(first)?;
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| self.offset + offset)
    }
}

/// A guest's memory table.
#[derive(Debug)]
pub struct Memory {
    regions: Vec<Region>,
}

impl Memory {
    /// Reads the payload of SET_MEM_TABLE. User Mode Linux always sends two regions, even if it
    /// counts only one.
    pub fn decode(payload: &[u8], files: Vec<OwnedFd>) -> Result<Self, TableError> {
        let count = payload
            .first_chunk()
            .map_or(0, |count| u32::from_le_bytes(*count));
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let len = payload.len();
        let table = payload.get(HEAD_LEN..).unwrap_or_default();
        let whole = table.len().is_multiple_of(REGION_LEN);
        if !(1..=MAX_REGIONS).contains(&count) || !whole || table.len() / REGION_LEN < count {
            return Err(TableError::Length {
                regions: count,
                len,
            });
        }
        if files.len() != count {
            return Err(TableError::Descriptors {
                regions: count,
                descriptors: files.len(),
            });
        }
        let mut regions: Vec<Region> = Vec::with_capacity(count);
        for (slot, file) in table.chunks_exact(REGION_LEN).zip(files) {
            let told: MemoryRegion = payload::decode(slot).unwrap_or_default();
            let region = Region {
                guest: told.guest_phys_addr,
                len: told.memory_size,
                user: told.user_addr,
                offset: told.mmap_offset,
                file,
            };
            let ends_in_file = |start: u64| {
                let end = start.checked_add(region.len);
                end.is_some_and(|end| i64::try_from(end).is_ok())
            };
            let possible = ends_in_file(region.guest)
                && ends_in_file(region.offset)
                && region.user.checked_add(region.len).is_some();
            if region.len == 0 || !possible {
                return Err(TableError::Region {
                    address: region.guest,
                    len: region.len,
                });
            }
            let meets = |other: &Region| {
                region.guest < other.guest + other.len && other.guest < region.guest + region.len
            };
            if regions.iter().any(meets) {
                return Err(TableError::Overlap(region.guest));
            }
            regions.push(region);
        }
        Ok(Self { regions })
    }

    /// The payload of SET_MEM_TABLE as every daemon takes it, and the descriptors to send beside
    /// it.
    pub fn encode(&self) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let regions = self.regions.iter();
        let table: Vec<_> = regions
            .map(|region| MemoryRegion::new(region.guest, region.len, region.user, region.offset))
            .collect();
        let payload = payload::memory_table(&table);
        let files = self.regions.iter().map(|region| region.file.as_fd());
        (payload, files.collect())
    }

    /// The guest physical address of the `len` bytes at address `user` of the guest's monitor, if
    /// they lie in one region.
    pub fn guest_address(&self, user: u64, len: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            region.offset_in_file(region.user, user, len)?;
            Some(region.guest + (user - region.user))
        })
    }

    fn find(&self, address: u64, len: usize) -> io::Result<(BorrowedFd<'_>, u64)> {
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        let found = self.regions.iter().find_map(|region| {
            let at = region.offset_in_file(region.guest, address, len)?;
            Some((region.file.as_fd(), at))
        });
        found.ok_or_else(|| Errno::FAULT.into())
    }
}

impl gangplank_rings::Memory for Memory {
    fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        let (file, mut at) = self.find(address, bytes.len())?;
        let mut filled = 0;
        while let Some(rest @ [_, ..]) = bytes.get_mut(filled..) {
            match rustix::io::pread(file, rest, at) {
                // The file is shorter than the region.
                Ok(0) => return Err(Errno::FAULT.into()),
                Ok(part) => {
                    filled += part;
                    at += u64::try_from(part).unwrap_or(0);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Two or four bytes that are aligned to their size arrive together, because the kernel copies
    /// them by one instruction.
    fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        let (file, mut at) = self.find(address, bytes.len())?;
        let mut written = 0;
        while let Some(rest @ [_, ..]) = bytes.get(written..) {
            match rustix::io::pwrite(file, rest, at) {
                Ok(0) => return Err(Errno::FAULT.into()),
                Ok(part) => {
                    written += part;
                    at += u64::try_from(part).unwrap_or(0);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;

    use gangplank_rings::Memory as _;

    use super::*;

    /// A file of `len` bytes in memory.
    pub(crate) fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    /// `len` bytes of memory at `guest`, which the monitor has at `user`.
    pub(crate) fn memory(guest: u64, user: u64, len: u64) -> (Memory, File) {
        let file = file(len);
        let shared = OwnedFd::from(file.try_clone().unwrap());
        let payload = table(1, &[[guest, len, user, 0]]);
        (Memory::decode(&payload, vec![shared]).unwrap(), file)
    }

    fn table(count: u64, regions: &[[u64; 4]]) -> Vec<u8> {
        let words = [count].into_iter().chain(regions.iter().flatten().copied());
        words.flat_map(u64::to_le_bytes).collect()
    }

    fn files(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| OwnedFd::from(file(0x4000))).collect()
    }

    #[test]
    fn unused_slot_of_user_mode_linux_goes_no_further() {
        let regions = [[0x1000, 0x1000, 0x1000, 0x1000], [0; 4]];
        let memory = Memory::decode(&table(1, &regions), files(1)).unwrap();
        let (payload, beside) = memory.encode();
        assert_eq!(payload, table(1, &regions[..1]));
        assert_eq!(beside.len(), 1);
    }

    #[test]
    fn impossible_tables_are_refused() {
        let whole = [0x1000, 0x1000, 0, 0];
        for (payload, descriptors) in [
            (table(0, &[]), 0),
            (table(9, &[whole; 9]), 9),
            (table(2, &[whole]), 2),
            (table(u64::MAX, &[whole]), 1),
            (table(1, &[whole])[..39].to_vec(), 1),
            (vec![1, 0], 1),
            (table(1, &[whole]), 0),
            (table(1, &[whole]), 2),
            (table(1, &[[0, 0, 0, 0]]), 1),
            (table(1, &[[u64::MAX, 2, 0, 0]]), 1),
            (table(1, &[[0, 2, u64::MAX, 0]]), 1),
            (table(1, &[[0, 2, 0, u64::MAX]]), 1),
            (table(1, &[[0, 2, 0, i64::MAX.unsigned_abs()]]), 1),
            (table(2, &[whole, [0x1fff, 0x10, 0x9000, 0]]), 2),
        ] {
            assert!(
                Memory::decode(&payload, files(descriptors)).is_err(),
                "{payload:x?} with {descriptors}"
            );
        }
    }

    #[test]
    fn addresses_lead_to_their_region_or_nowhere() {
        let regions = [[0x1000, 0x1000, 0x7000, 0x2000], [0x8000, 0x800, 0x1000, 0]];
        let memory = Memory::decode(&table(2, &regions), files(2)).unwrap();
        assert_eq!(memory.guest_address(0x7010, 0x10), Some(0x1010));
        assert_eq!(memory.guest_address(0x1000, 0x800), Some(0x8000));
        assert_eq!(memory.guest_address(0x1000, 0x801), None);
        assert_eq!(memory.guest_address(0x7fff, u64::MAX), None);
        memory.write(0x1ffe, &[1, 2]).unwrap();
        assert_eq!(memory.read_u16(0x1ffe).unwrap(), 0x201);
        for (address, len) in [(0x1fff, 2), (0xfff, 1), (0x87ff, 2), (u64::MAX, 1)] {
            let error = memory.read(address, &mut vec![0; len]).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::FAULT));
            assert!(memory.write(address, &vec![0; len]).is_err());
        }
    }

    #[test]
    fn memory_that_was_cut_off_is_an_error() {
        let (memory, file) = memory(0, 0, 0x2000);
        file.set_len(0x1000).unwrap();
        assert!(memory.read_u16(0x1000).is_err());
        assert!(memory.read_u16(0xffe).is_ok());
    }
}
