//! Translates a descriptor chain into memory segments of this process.
//!
//! Public for the fuzz target `chains`.

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::sys::buffers::Segments;
use crate::sys::volatile::read_slice;

/// Descriptors copied out of an indirect table at a time. One copy covers most tables, and a table
/// that a driver claims to be long costs no more than the part in use.
const BLOCK: usize = 64;

/// Descriptors that a chain may have however small its ring is.
///
/// A chain is at most as long as its ring (virtio 1.2, 2.7.5.3.1), but Linux kernels before 5.13
/// exceed rings of 128, QEMU's default, by indirect tables: the pages of one request
/// (`FUSE_MAX_MAX_PAGES`, 256) and 4 headers (`FUSE_HEADER_OVERHEAD`, `fs/fuse/virtio_fs.c`).
const MIN_CHAIN_LIMIT: u16 = 256 + 4;

/// One descriptor (virtio 1.2, 2.7.5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Descriptor {
    address: U64,
    len: U32,
    flags: U16,
    next: U16,
}

const _: () = assert!(size_of::<Descriptor>() == 16);

impl Descriptor {
    fn has(&self, flag: u32) -> bool {
        u32::from(self.flags.get()) & flag != 0
    }
}

/// A table of descriptors in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Guest physical address.
    pub address: u64,
    /// Number of descriptors.
    pub entries: u16,
}

/// A chain that the driver made available in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor in `table`.
    pub head: u16,
    /// The ring's own table.
    pub table: Table,
}

/// Why a chain is invalid. Its driver is broken or hostile, so the device stops the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MalformedChain {
    /// The chain loops, leaves its table, or its table cannot be read.
    #[error("it loops, leaves its table or lies outside guest memory")]
    Unterminated,
    /// The chain has more descriptors than its ring permits, or room for them in its table.
    #[error("it is longer than {limit} descriptors, the most that its ring permits")]
    TooLong {
        /// The most descriptors of a chain.
        limit: u16,
    },
    /// A descriptor names an address outside guest memory.
    #[error("a descriptor names {len} bytes at {address:#x}, outside guest memory")]
    OutsideMemory {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A device-readable descriptor follows a device-writable one (virtio 1.2, 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
}

/// Translates chains into memory segments, with a buffer that it reuses.
pub struct Translator {
    /// Copy of a part of an indirect table.
    block: [Descriptor; BLOCK],
    /// Index of the block's first descriptor in the table.
    first: u16,
    /// Valid descriptors in the block.
    count: u16,
}

impl Default for Translator {
    fn default() -> Self {
        Self {
            block: FromZeros::new_zeroed(),
            first: 0,
            count: 0,
        }
    }
}

impl Translator {
    /// Translates the chain's descriptors into `readable` and `writable` segments of this process.
    ///
    /// Copies each descriptor once and uses only the copy.
    ///
    /// # Errors
    /// The chain is malformed; the segment lists then hold the descriptors before the fault.
    pub fn translate(
        &mut self,
        chain: Chain,
        memory: &GuestMemoryMmap,
        readable: &mut Segments,
        writable: &mut Segments,
    ) -> Result<(), MalformedChain> {
        self.walk(chain, memory, |regions, address, len, is_writable| {
            let side = if is_writable {
                &mut *writable
            } else if writable.total() > 0 {
                return Err(MalformedChain::ReadableAfterWritable);
            } else {
                &mut *readable
            };
            regions.append(address, len, side)
        })
    }

    /// Calls `visit` with guest address and length of each buffer that the device may write to. A
    /// chain that has become malformed ends the calls.
    pub fn writable(
        &mut self,
        chain: Chain,
        memory: &GuestMemoryMmap,
        mut visit: impl FnMut(u64, u32),
    ) {
        let _ = self.walk(chain, memory, |_, address, len, is_writable| {
            if is_writable {
                visit(address, len);
            }
            Ok(())
        });
    }

    /// Calls `visit` with guest address and length of each buffer, and whether it is writable.
    fn walk<'a>(
        &mut self,
        chain: Chain,
        memory: &'a GuestMemoryMmap,
        mut visit: impl FnMut(&mut Regions<'a>, u64, u32, bool) -> Result<(), MalformedChain>,
    ) -> Result<(), MalformedChain> {
        let mut regions = Regions::new(memory);
        let (mut table, mut index) = (chain.table, chain.head);
        let limit = table.entries.max(MIN_CHAIN_LIMIT);
        let (mut left, mut is_indirect) = (table.entries, false);
        let mut bytes = 0_u32;
        // The block is for indirect tables alone: in a ring's own table, the descriptors behind one
        // mostly belong to other chains.
        self.count = 0;
        loop {
            if left == 0 || index >= table.entries {
                return Err(MalformedChain::Unterminated);
            }
            let descriptor = if is_indirect {
                self.in_block(&mut regions, table, index)
            } else {
                read(&mut regions, table, index)
            };
            let descriptor = descriptor.ok_or(MalformedChain::Unterminated)?;
            let len = descriptor.len.get();
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                if is_indirect {
                    return Err(MalformedChain::Unterminated);
                }
                // The descriptors in the ring count, except the one that names the table.
                let before = table.entries - left;
                table = indirect(&descriptor).ok_or(MalformedChain::Unterminated)?;
                if table.entries > limit - before {
                    return Err(MalformedChain::TooLong { limit });
                }
                (index, left, is_indirect) = (0, table.entries, true);
                continue;
            }
            // A chain holds at most 2^32 bytes (virtio 1.2, 2.7.5.2).
            bytes = bytes.checked_add(len).ok_or(MalformedChain::Unterminated)?;
            let is_writable = descriptor.has(VRING_DESC_F_WRITE);
            visit(&mut regions, descriptor.address.get(), len, is_writable)?;
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next.get();
            left -= 1;
        }
    }

    /// Returns a descriptor from the current block, or reads the block that begins with it.
    fn in_block(
        &mut self,
        regions: &mut Regions<'_>,
        table: Table,
        index: u16,
    ) -> Option<Descriptor> {
        let at = index.wrapping_sub(self.first);
        if index >= self.first && at < self.count {
            return self.block.get(usize::from(at)).copied();
        }
        let count = usize::from(table.entries - index).min(BLOCK);
        let block = self.block.get_mut(..count)?;
        regions.read(address_of(table, index)?, block.as_mut_bytes())?;
        (self.first, self.count) = (index, u16::try_from(count).ok()?);
        block.first().copied()
    }
}

/// Reads a descriptor of a ring's own table.
fn read(regions: &mut Regions<'_>, table: Table, index: u16) -> Option<Descriptor> {
    let mut descriptor = Descriptor::new_zeroed();
    regions.read(address_of(table, index)?, descriptor.as_mut_bytes())?;
    Some(descriptor)
}

fn address_of(table: Table, index: u16) -> Option<u64> {
    let offset = u64::from(index) * size_of::<Descriptor>() as u64;
    table.address.checked_add(offset)
}

/// The indirect table that a descriptor refers to (virtio 1.2, 2.7.5.3). `None` unless its length
/// is a whole number of descriptors that 16 bits can number.
fn indirect(descriptor: &Descriptor) -> Option<Table> {
    let size = u32::try_from(size_of::<Descriptor>()).ok()?;
    let len = descriptor.len.get();
    if !len.is_multiple_of(size) {
        return None;
    }
    Some(Table {
        address: descriptor.address.get(),
        entries: u16::try_from(len / size).ok()?,
    })
}

/// Guest memory with a cache of the region used last. Most descriptors of a chain lie in one.
struct Regions<'a> {
    memory: &'a GuestMemoryMmap,
    /// The region of the last look-up.
    last: Option<&'a GuestRegionMmap>,
}

impl<'a> Regions<'a> {
    const fn new(memory: &'a GuestMemoryMmap) -> Self {
        Self { memory, last: None }
    }

    /// Copies `bytes.len()` bytes from guest address `address`. `None` if guest memory ends before.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Option<()> {
        let (mut address, mut bytes) = (address, bytes);
        // The bytes may continue in the next region.
        while !bytes.is_empty() {
            let (region, offset) = self.region_of(address)?;
            let left = usize::try_from(region.len() - offset).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at_mut(left.min(bytes.len()));
            let slice = region.get_slice(MemoryRegionAddress(offset), part.len());
            let copied = read_slice(&slice.ok()?, part);
            address = address.checked_add(u64::try_from(copied).ok()?)?;
            bytes = rest;
        }
        Some(())
    }

    /// Appends `len` bytes at guest address `address`. They may span several memory regions.
    fn append(
        &mut self,
        address: u64,
        len: u32,
        segments: &mut Segments,
    ) -> Result<(), MalformedChain> {
        let outside = MalformedChain::OutsideMemory { address, len };
        let (mut at, mut left) = (address, u64::from(len));
        while left > 0 {
            let (region, offset) = self.region_of(at).ok_or(outside)?;
            let part = left.min(region.len() - offset);
            let sizes = usize::try_from(offset).ok().zip(usize::try_from(part).ok());
            let (offset, count) = sizes.ok_or(outside)?;
            if !segments.push(region.as_ptr().wrapping_add(offset), count) {
                return Err(outside);
            }
            left -= part;
            if left > 0 {
                at = at.checked_add(part).ok_or(outside)?;
            }
        }
        Ok(())
    }

    /// The region that holds `address`, and the offset of the address in it.
    fn region_of(&mut self, address: u64) -> Option<(&'a GuestRegionMmap, u64)> {
        let within = |region: &GuestRegionMmap| {
            let offset = address.wrapping_sub(region.start_addr().0);
            (offset < region.len()).then_some(offset)
        };
        if let Some(region) = self.last
            && let Some(offset) = within(region)
        {
            return Some((region, offset));
        }
        let region = self.memory.find_region(GuestAddress(address))?;
        self.last = Some(region);
        Some((region, within(region)?))
    }
}

#[cfg(test)]
mod tests;
