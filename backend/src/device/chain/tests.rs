//! Tests of the translation of chains.

use vm_memory::Bytes;

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
    chain_in(memory, 16)
}

/// Translates the chain at index 0 of a ring with `entries` entries.
fn chain_in(
    memory: &GuestMemoryMmap,
    entries: u16,
) -> Result<(Segments, Segments), MalformedChain> {
    let table = Table {
        address: 0,
        entries,
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
fn an_indirect_table_is_no_longer_than_its_ring_or_the_pages_of_a_request() {
    let chain = |len: u16| -> Vec<Parts> {
        let more = |index| if index + 1 < len { NEXT } else { 0 };
        (0..len)
            .map(|index| (0x3000, 8, more(index), index + 1))
            .collect()
    };
    let translated = |ring: u16, table: u16, chain: &[Parts]| {
        let memory = guest();
        put(&memory, TABLE, chain);
        put(&memory, 0, &[(TABLE, 16 * u32::from(table), INDIRECT, 0)]);
        chain_in(&memory, ring).map(|(readable, _)| readable.total())
    };
    for (ring, most) in [(16, 260), (128, 260), (256, 260), (512, 512)] {
        let bytes = 8 * usize::from(most);
        assert_eq!(translated(ring, most, &chain(most)), Ok(bytes));
        let refused = Err(MalformedChain::TooLong { limit: most });
        assert_eq!(translated(ring, most + 1, &chain(most + 1)), refused);
        assert_eq!(translated(ring, u16::MAX, &chain(1)), refused);
    }
}

#[test]
fn the_descriptors_before_an_indirect_table_count() {
    let translated = |entries: u16| {
        let memory = guest();
        put(&memory, TABLE, &[(0x3000, 8, 0, 0)]);
        let indirect = (TABLE, 16 * u32::from(entries), INDIRECT, 0);
        put(&memory, 0, &[(0x3000, 8, NEXT, 1), indirect]);
        chain_of(&memory).map(|(readable, _)| readable.total())
    };
    assert_eq!(translated(259), Ok(16));
    let limit = 260;
    assert_eq!(translated(260), Err(MalformedChain::TooLong { limit }));
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
