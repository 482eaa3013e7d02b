//! Translates a descriptor chain into memory segments of this process.

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::sys::buffers::Segments;

/// Descriptors copied out of an indirect table at a time. One copy covers most tables, and a table
/// that a driver claims to be long costs no more than the part in use.
const BLOCK: usize = 64;

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
pub(super) struct Table {
    /// Guest physical address.
    pub(super) address: u64,
    /// Number of descriptors.
    pub(super) entries: u16,
}

/// A chain that the driver made available in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// Index of its first descriptor in `table`.
    pub(super) head: u16,
    /// The ring's own table.
    pub(super) table: Table,
}

/// Why a chain is invalid. Its driver is broken or hostile, so the device stops the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum MalformedChain {
    /// The chain loops, leaves its table, or its table cannot be read.
    #[error("it loops, leaves its table or lies outside guest memory")]
    Unterminated,
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
pub(super) struct Translator {
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
    pub(super) fn translate(
        &mut self,
        chain: Chain,
        memory: &GuestMemoryMmap,
        readable: &mut Segments,
        writable: &mut Segments,
    ) -> Result<(), MalformedChain> {
        let mut regions = Regions::new(memory);
        let (mut table, mut index) = (chain.table, chain.head);
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
                table = indirect(&descriptor).ok_or(MalformedChain::Unterminated)?;
                (index, left, is_indirect) = (0, table.entries, true);
                continue;
            }
            // A chain holds at most 2^32 bytes (virtio 1.2, 2.7.5.2).
            bytes = bytes.checked_add(len).ok_or(MalformedChain::Unterminated)?;
            let side = if descriptor.has(VRING_DESC_F_WRITE) {
                &mut *writable
            } else if writable.total() > 0 {
                return Err(MalformedChain::ReadableAfterWritable);
            } else {
                &mut *readable
            };
            regions.append(descriptor.address.get(), len, side)?;
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
        let (region, offset) = self.region_of(address)?;
        if let Ok(slice) = region.get_slice(MemoryRegionAddress(offset), bytes.len()) {
            slice.copy_to(bytes);
            return Some(());
        }
        // The bytes may continue in the next region.
        self.memory.read_slice(bytes, GuestAddress(address)).ok()
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
mod tests {
    use super::*;

    #[allow(clippy::cast_possible_truncation)] // bindgen gives 16-bit flags as u32
    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    #[allow(clippy::cast_possible_truncation)]
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    #[allow(clippy::cast_possible_truncation)]
    const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

    /// Guest address of an indirect table that spans both regions.
    const TABLE: u64 = 0xff80;

    /// Address, length, flags, next.
    type Parts = (u64, u32, u16, u16);

    /// A guest with two adjacent regions of 64 KiB.
    fn guest() -> GuestMemoryMmap {
        let regions = [(GuestAddress(0), 0x10000), (GuestAddress(0x10000), 0x10000)];
        GuestMemoryMmap::from_ranges(&regions).expect("memory")
    }

    fn put(memory: &GuestMemoryMmap, table: u64, descriptors: &[Parts]) {
        for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
            let descriptor = Descriptor {
                address: U64::new(*address),
                len: U32::new(*len),
                flags: U16::new(*flags),
                next: U16::new(*next),
            };
            let at = GuestAddress(table + 16 * index as u64);
            let written = memory.write_slice(descriptor.as_bytes(), at);
            written.expect("in memory");
        }
    }

    fn chain_of(memory: &GuestMemoryMmap) -> Result<(Segments, Segments), MalformedChain> {
        let table = Table {
            address: 0,
            entries: 16,
        };
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        Translator::default().translate(
            Chain { head: 0, table },
            memory,
            &mut readable,
            &mut writable,
        )?;
        Ok((readable, writable))
    }

    /// Puts the descriptors into a ring's table and translates the chain at index 0. Returns its
    /// readable and writable bytes.
    fn translated(descriptors: &[Parts]) -> Result<(usize, usize), MalformedChain> {
        let memory = guest();
        put(&memory, 0, descriptors);
        chain_of(&memory).map(|(readable, writable)| (readable.total(), writable.total()))
    }

    /// The same with the descriptors in an indirect table of `len` bytes.
    fn translated_indirectly(
        descriptors: &[Parts],
        len: u32,
    ) -> Result<(usize, usize), MalformedChain> {
        let memory = guest();
        put(&memory, TABLE, descriptors);
        put(&memory, 0, &[(TABLE, len, INDIRECT, 0)]);
        chain_of(&memory).map(|(readable, writable)| (readable.total(), writable.total()))
    }

    #[test]
    fn a_table_of_its_own_may_be_long_and_in_any_order() {
        // Longer than a block, with the even descriptors first and the odd ones after them.
        let count = 150_u16;
        let next = |index: u16| match index + 2 {
            next if next < count => next,
            _ if index.is_multiple_of(2) => 1,
            _ => 0,
        };
        let last = |index| index == count - 1;
        let descriptors: Vec<Parts> = (0..count)
            .map(|index| {
                let more = if last(index) { 0 } else { NEXT };
                (0x3000, 8, more, next(index))
            })
            .collect();
        let len = 16 * u32::from(count);
        assert_eq!(translated_indirectly(&descriptors, len), Ok((1200, 0)));
        assert_eq!(
            translated_indirectly(&descriptors, len - 16),
            Err(MalformedChain::Unterminated),
            "a table that ends before its chain"
        );
    }

    #[test]
    fn impossible_tables_are_refused() {
        let one = [(0x3000, 8, 0, 0)];
        assert_eq!(translated_indirectly(&one, 16), Ok((8, 0)));
        for len in [0, 8, 24, 16 << 16, u32::MAX] {
            let refused = translated_indirectly(&one, len);
            assert_eq!(refused, Err(MalformedChain::Unterminated), "{len}");
        }
        let nested = [(0x3000, 16, INDIRECT, 0)];
        let refused = translated_indirectly(&nested, 16);
        assert_eq!(refused, Err(MalformedChain::Unterminated));
        let looped = [(0x3000, 8, NEXT, 0)];
        let refused = translated_indirectly(&looped, 16);
        assert_eq!(refused, Err(MalformedChain::Unterminated));
    }

    #[test]
    fn adjacent_descriptors_are_one_segment_and_regions_are_not() {
        let memory = guest();
        let chain = [
            (0x3000, 0x1000, NEXT, 1),
            (0x4000, 0x1000, NEXT, 2),
            (0x6000, 0x1000, 0, 0),
        ];
        put(&memory, 0, &chain);
        let (readable, _) = chain_of(&memory).expect("a good chain");
        assert_eq!((readable.total(), readable.count()), (0x3000, 2));
    }

    #[test]
    fn more_than_a_chain_may_hold_is_refused() {
        let chain = [(0x3000, 8, NEXT, 1), (0x3000, u32::MAX, 0, 0)];
        assert_eq!(translated(&chain), Err(MalformedChain::Unterminated));
    }

    #[test]
    fn a_chain_is_split_into_readable_and_writable_segments() {
        let chain = [
            (0x3000, 40, NEXT, 1),
            (0x4000, 8, NEXT, 2),
            (0x5000, 16, NEXT | WRITE, 3),
            (0x6000, 4096, WRITE, 0),
        ];
        assert_eq!(translated(&chain), Ok((48, 4112)));
    }

    #[test]
    fn a_descriptor_may_span_two_regions() {
        assert_eq!(translated(&[(0xff00, 0x200, 0, 0)]), Ok((0x200, 0)));
    }

    #[test]
    fn a_looped_chain_is_refused() {
        let chain = [(0x3000, 40, NEXT, 1), (0x4000, 8, NEXT, 0)];
        assert_eq!(translated(&chain), Err(MalformedChain::Unterminated));
    }

    #[test]
    fn a_chain_that_leaves_its_table_is_refused() {
        assert_eq!(
            translated(&[(0x3000, 40, NEXT, 16)]),
            Err(MalformedChain::Unterminated)
        );
    }

    #[test]
    fn addresses_outside_guest_memory_are_refused() {
        for (address, len) in [(0x1ffff, 2), (0x20000, 1), (u64::MAX, 2), (0, u32::MAX)] {
            let refused = translated(&[(address, len, WRITE, 0)]);
            assert_eq!(refused, Err(MalformedChain::OutsideMemory { address, len }));
        }
    }

    #[test]
    fn readable_after_writable_is_refused() {
        let chain = [(0x3000, 40, NEXT | WRITE, 1), (0x4000, 8, 0, 0)];
        assert_eq!(
            translated(&chain),
            Err(MalformedChain::ReadableAfterWritable)
        );
    }
}
