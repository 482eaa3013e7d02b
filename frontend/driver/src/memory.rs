//! Memory shared with the daemon, and its allocation.
//!
//! It is an unnamed file that both sides map. The file is sealed against shrinking, because access
//! to a page beyond the end of a file kills the process by SIGBUS. No Rust reference points into
//! it: the daemon may write anywhere at any time.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gangplank_vhost_user::client::Region;
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use vm_memory::{
    AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileMemoryError, VolatileSlice,
};

use super::error::{Error, Result};

/// Ranges begin at multiples of this many bytes, so that a daemon can use them for direct I/O.
const PAGE: u64 = 4096;

/// The first guest address. It is not zero, so that an address that was never set is invalid.
const BASE: u64 = 0x1_0000_0000;

/// The memory. Addresses are guest physical addresses and always come from the driver: nothing that
/// the daemon says becomes one.
#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    map: MmapRegion,
    len: u64,
    /// Free ranges: address to length.
    free: Mutex<BTreeMap<u64, u64>>,
}

impl Memory {
    /// Makes `len` bytes, rounded up to whole pages. The host provides a page when it is first
    /// touched.
    pub(super) fn new(len: u64) -> Result<Self> {
        let failed = |source: std::io::Error| Error::System {
            what: "make memory to share with the daemon",
            source,
        };
        let len = len.max(PAGE).next_multiple_of(PAGE);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("virtio-fs-driver", flags).map_err(|errno| failed(errno.into()))?;
        ftruncate(&file, len).map_err(|errno| failed(errno.into()))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(|errno| failed(errno.into()))?;
        let file = File::from(file);
        let backing = FileOffset::new(file.try_clone().map_err(failed)?, 0);
        let size = usize::try_from(len).map_err(|_| failed(Errno::NOMEM.into()))?;
        let map = MmapRegion::from_file(backing, size)
            .map_err(|error| failed(std::io::Error::other(error)))?;
        Ok(Self {
            file,
            map,
            len,
            free: Mutex::new(BTreeMap::from([(BASE, len)])),
        })
    }

    /// The memory as SET_MEM_TABLE sends it.
    pub(super) fn region(&self) -> Region<'_> {
        Region {
            guest_address: BASE,
            len: self.len,
            file: self.file.as_fd(),
            mmap_offset: 0,
        }
    }

    /// Allocates `len` bytes with undefined contents. [`Memory::release`] frees them.
    pub(super) fn allocate(&self, len: usize) -> Result<u64> {
        let len = rounded(len);
        let mut free = self.free.lock();
        let found = free.iter().find(|(_, room)| **room >= len);
        let (address, room) = found
            .map(|(address, room)| (*address, *room))
            .ok_or(Error::NoMemory { len })?;
        free.remove(&address);
        if room > len {
            free.insert(address + len, room - len);
        }
        Ok(address)
    }

    /// Frees what [`Memory::allocate`] returned. The daemon must have finished with it.
    pub(super) fn release(&self, address: u64, len: usize) {
        let mut free = self.free.lock();
        let (mut start, mut len) = (address, rounded(len));
        if let Some(behind) = free.remove(&(start + len)) {
            len += behind;
        }
        let before = free.range(..start).next_back().map(|(at, len)| (*at, *len));
        if let Some((at, room)) = before
            && at + room == start
        {
            start = at;
            len += room;
        }
        free.insert(start, len);
    }

    /// `len` bytes at `address`.
    ///
    /// # Panics
    /// If the range is outside the memory. Every address comes from [`Memory::allocate`].
    pub(super) fn slice(&self, address: u64, len: usize) -> VolatileSlice<'_> {
        let offset = address.checked_sub(BASE);
        offset
            .and_then(|offset| usize::try_from(offset).ok())
            .and_then(|offset| self.map.get_slice(offset, len).ok())
            .expect("addresses are the driver's own, and within its memory")
    }

    /// Copies `bytes` to `address`.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        self.slice(address, bytes.len()).copy_from(bytes);
    }

    /// Copies `len` bytes from `address`.
    pub(super) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.slice(address, len).copy_to(&mut bytes);
        bytes
    }

    /// Stores a number after everything that was written before it (release). `address` is aligned
    /// to the number's size.
    pub(super) fn store<T: AtomicAccess>(&self, address: u64, value: T) {
        let stored: std::result::Result<(), VolatileMemoryError> = self
            .slice(address, size_of::<T>())
            .store(value, 0, Ordering::Release);
        stored.expect("rings are aligned");
    }

    /// Loads a number before everything that is read after it (acquire). `address` is aligned to
    /// the number's size.
    pub(super) fn load<T: AtomicAccess>(&self, address: u64) -> T {
        let loaded: std::result::Result<T, VolatileMemoryError> = self
            .slice(address, size_of::<T>())
            .load(0, Ordering::Acquire);
        loaded.expect("rings are aligned")
    }
}

fn rounded(len: usize) -> u64 {
    (len as u64).max(1).next_multiple_of(PAGE)
}

/// A range of the memory that the driver shares with the daemon, for file data, which is never
/// copied on its way.
///
/// It belongs to one request at a time. Dropping it frees the memory.
#[derive(Debug)]
pub struct Buffer {
    memory: Arc<Memory>,
    address: u64,
    len: usize,
}

impl Buffer {
    pub(super) fn new(memory: &Arc<Memory>, len: usize) -> Result<Self> {
        let address = memory.allocate(len)?;
        Ok(Self {
            memory: Arc::clone(memory),
            address,
            len,
        })
    }

    pub(super) const fn address(&self) -> u64 {
        self.address
    }

    /// Length, in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether its length is zero.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes in place. Files read into them and write from them by `vm_memory::ReadVolatile`
    /// and `WriteVolatile`.
    ///
    /// A daemon that breaks the rules may change them at any time: copy before reading twice.
    #[must_use]
    pub fn bytes(&self) -> VolatileSlice<'_> {
        self.memory.slice(self.address, self.len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.release(self.address, self.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_parts_grow_together_again() {
        let memory = Arc::new(Memory::new(4 * PAGE).unwrap());
        let mut parts: Vec<_> = (0..4)
            .map(|_| Buffer::new(&memory, 1000).unwrap())
            .collect();
        assert!(matches!(
            Buffer::new(&memory, 1),
            Err(Error::NoMemory { .. })
        ));
        for at in [1, 2, 1, 0] {
            parts.remove(at);
        }
        assert_eq!(Buffer::new(&memory, 16384).unwrap().address(), BASE);
    }

    #[test]
    fn nobody_can_cut_the_file_short() {
        let memory = Memory::new(PAGE).unwrap();
        assert_eq!(ftruncate(&memory.file, 0), Err(Errno::PERM));
        memory.write(BASE, b"still there");
        assert_eq!(memory.read(BASE, 11), b"still there");
    }
}
