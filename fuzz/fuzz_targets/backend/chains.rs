//! Descriptor chains: the input is the guest's memory with tables in it, and the chains to take.
//! Each is refused, or its segments lie in the guest's memory and are as long as its descriptors.
#![no_main]

#[allow(dead_code, reason = "the other targets read more")]
mod input;

use gangplank_backend::device::chain::{Chain, Table, Translator};
use gangplank_backend::sys::buffers::Segments;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use input::Input;

/// Regions of the guest's memory: address and bytes. The first two are one range for the driver.
const REGIONS: [(GuestAddress, usize); 3] = [
    (GuestAddress(0), 0x1000),
    (GuestAddress(0x1000), 0x1000),
    (GuestAddress(0x8000), 0x1000),
];

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;

/// Most descriptors that the input fills.
const MAX_DESCRIPTORS: usize = 96;

/// Most descriptors of a chain: those of the largest ring here, or what every ring permits.
const MAX_CHAIN: usize = 260;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let memory = GuestMemoryMmap::<()>::from_ranges(&REGIONS).expect("mapped");
    let chains = 1 + input.byte() % 4;
    let heads: Vec<(Chain, bool)> = (0..chains).map(|_| chain(&mut input)).collect();
    for _ in 0..MAX_DESCRIPTORS {
        if input.is_empty() {
            break;
        }
        let at = address(&mut input);
        let _ = memory.write_slice(&descriptor(&mut input), GuestAddress(at));
    }
    let mut translator = Translator::default();
    for (chain, is_marked) in heads {
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        let result = translator.translate(chain, &memory, &mut readable, &mut writable);
        assert!(readable.count() + writable.count() <= 3 * MAX_CHAIN);
        let mut marked = 0_u64;
        if is_marked {
            translator.writable(chain, &memory, |_, len| marked += u64::from(len));
            if result.is_ok() {
                assert_eq!(marked, writable.total() as u64);
            }
        }
        if result.is_ok() {
            // Each byte is there.
            // SAFETY: the memory outlives the reader.
            let mut reader = unsafe { readable.reader() };
            let len = readable_bytes(&mut reader);
            // SAFETY: the memory outlives the writer.
            let mut writer = unsafe { writable.writer() };
            let room = writer.remaining();
            assert_eq!(writer.write(&vec![0; room.min(1 << 16)]), room.min(1 << 16));
            assert!(len <= 1 << 16);
        }
    }
});

/// Reads a chain, as far as 64 KiB. Returns the bytes.
fn readable_bytes(reader: &mut gangplank_backend::sys::buffers::Reader<'_>) -> usize {
    let mut bytes = vec![0; reader.remaining().min(1 << 16)];
    let len = reader.read(&mut bytes);
    assert_eq!(len, bytes.len());
    len
}

/// A chain of a ring with up to 256 descriptors, and whether its pages are marked as written to.
fn chain(input: &mut Input<'_>) -> (Chain, bool) {
    let choice = input.byte();
    let table = Table {
        address: address(input),
        entries: 1 << (choice % 9),
    };
    let head = u16::from(input.byte());
    (Chain { head, table }, choice & 0x80 != 0)
}

/// Mostly the place of a descriptor.
fn address(input: &mut Input<'_>) -> u64 {
    match input.byte() {
        0..200 => u64::from(input.byte()) * DESCRIPTOR,
        200..230 => 0x0ff0 + u64::from(input.byte()),
        _ => input.offset(),
    }
}

fn descriptor(input: &mut Input<'_>) -> Vec<u8> {
    let address = address(input);
    let len = match input.byte() {
        0..100 => u32::from(input.byte()),
        100..200 => u32::from(input.byte()) * 16,
        _ => input.u32(),
    };
    // NEXT, WRITE and INDIRECT.
    let flags = u16::from(input.byte() % 8);
    let next = u16::from(input.byte());
    let parts = [&address.to_le_bytes()[..], &len.to_le_bytes()];
    [
        parts.concat(),
        flags.to_le_bytes().to_vec(),
        next.to_le_bytes().to_vec(),
    ]
    .concat()
}
