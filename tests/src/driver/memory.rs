//! Guest memory that the test shares with the daemon, and its allocator.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::error::{Error, Result};

/// Allocations are multiples of this many bytes, and so aligned to it.
const UNIT: u64 = 64;

/// The first guest physical address. It is not zero, so that a forgotten address is a wrong one.
pub const GUEST_BASE: u64 = 0x4000_0000;

/// The first frontend address of guest memory, far from the guest's addresses.
pub const USER_BASE: u64 = 0x7f00_0000_0000;

/// One region of shared memory in a file without a name.
pub struct Memory {
    file: File,
    map: GuestMemoryMmap,
    len: u64,
    /// Free extents: guest address to length.
    free: BTreeMap<u64, u64>,
}

impl Memory {
    /// Makes `len` bytes, a multiple of the page size, all zero.
    ///
    /// # Errors
    /// The host has no memory left.
    pub fn new(len: u64) -> Result<Self> {
        let what = "making shared memory";
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).map_err(Error::system(what))?;
        ftruncate(&file, len).map_err(Error::system(what))?;
        Self::of(File::from(file), len)
    }

    /// The first `len` bytes, a multiple of the page size, of a `file` that other processes may
    /// have mapped.
    ///
    /// # Errors
    /// The file cannot be mapped.
    pub fn of(file: File, len: u64) -> Result<Self> {
        let what = "mapping shared memory";
        let backing = file
            .try_clone()
            .map_err(|source| Error::System { what, source })?;
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        let map = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(GUEST_BASE),
            size,
            Some(FileOffset::new(backing, 0)),
        )])
        .map_err(|error| Error::System {
            what,
            source: std::io::Error::other(error),
        })?;
        Ok(Self {
            file,
            map,
            len,
            free: BTreeMap::from([(GUEST_BASE, len)]),
        })
    }

    /// The file behind it.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its length, in bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether it is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The region in the form of SET_MEM_TABLE.
    #[must_use]
    pub const fn region(&self) -> [u64; 4] {
        [GUEST_BASE, self.len, USER_BASE, 0]
    }

    /// The frontend's own address of a guest address.
    #[must_use]
    pub const fn user_address(address: u64) -> u64 {
        address.wrapping_sub(GUEST_BASE).wrapping_add(USER_BASE)
    }

    /// Truncates the file. An access beyond the new end raises SIGBUS, so this process must make
    /// none.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn truncate(&self, len: u64) -> Result<()> {
        ftruncate(&self.file, len).map_err(Error::system("cutting shared memory short"))
    }

    /// Allocates `len` bytes with any content.
    ///
    /// # Errors
    /// There is no extent that long.
    pub fn allocate(&mut self, len: usize) -> Result<u64> {
        let len = rounded(len);
        let found = self.free.iter().find(|(_, free)| **free >= len);
        let (address, free) = found
            .map(|(address, free)| (*address, *free))
            .ok_or(Error::Exhausted("memory"))?;
        self.free.remove(&address);
        if free > len {
            self.free.insert(address + len, free - len);
        }
        Ok(address)
    }

    /// Releases an allocation of [`Memory::allocate`].
    pub fn release(&mut self, address: u64, len: usize) {
        let (mut start, mut len) = (address, rounded(len));
        if let Some(behind) = self.free.remove(&(start + len)) {
            len += behind;
        }
        let before = self
            .free
            .range(..start)
            .next_back()
            .map(|(at, len)| (*at, *len));
        if let Some((at, free)) = before
            && at + free == start
        {
            start = at;
            len += free;
        }
        self.free.insert(start, len);
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// The address is a mistake of the test.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.map
            .write_slice(bytes, GuestAddress(address))
            .expect("an address in guest memory");
    }

    /// Copies `len` bytes out.
    ///
    /// # Panics
    /// The address is a mistake of the test.
    #[must_use]
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("an address in guest memory");
        bytes
    }

    /// Stores a number that the daemon may read, with release ordering.
    ///
    /// # Panics
    /// The address is a mistake of the test.
    pub fn store<T: AtomicAccess>(&self, address: u64, value: T) {
        self.map
            .store(value, GuestAddress(address), Ordering::Release)
            .expect("an address in guest memory");
    }

    /// Loads a number as [`Memory::load`] does, or zero outside the memory.
    #[must_use]
    pub fn load_or_zero(&self, address: u64) -> u16 {
        self.map
            .load(GuestAddress(address), Ordering::Acquire)
            .unwrap_or_default()
    }

    /// Loads a number that the daemon may change, with acquire ordering.
    ///
    /// # Panics
    /// The address is a mistake of the test.
    #[must_use]
    pub fn load<T: AtomicAccess>(&self, address: u64) -> T {
        self.map
            .load(GuestAddress(address), Ordering::Acquire)
            .expect("an address in guest memory")
    }
}

fn rounded(len: usize) -> u64 {
    (len as u64).max(1).next_multiple_of(UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_memory_grows_together_again() {
        let mut memory = Memory::new(4096).expect("memory");
        let parts: Vec<u64> = (0..4)
            .map(|_| memory.allocate(1000).expect("room"))
            .collect();
        assert!(memory.allocate(64).is_err());
        for part in [parts[1], parts[3], parts[2], parts[0]] {
            memory.release(part, 1000);
        }
        assert_eq!(memory.allocate(4096).expect("whole again"), GUEST_BASE);
    }
}
