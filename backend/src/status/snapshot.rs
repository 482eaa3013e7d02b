//! Reads what is told of one guest from a copy of its arena.
//!
//! The guest's worker can write anything there, and can shorten the file, and a killed one stops in
//! the middle. So the bytes are copied first, each number is any number, and each count is bounded
//! by the daemon's own options.

use std::io;
use std::mem::size_of;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gangplank_fuse::{KERNEL_MINOR_VERSION, KERNEL_VERSION, Opcode};
use rustix::time::ClockId;

use super::model::{self, Guest, Latency, Oldest, Restarts, Ring, Session, kernel_of_minor};
use crate::state::arena::{self, Header, LAYOUT, MAGIC};
use crate::state::counters::{self, Block, OPERATIONS, RUNNING_OPCODE};
use crate::state::recovery::{DISCONNECTED, STOPPED};
use crate::state::requests::{RequestSlot, RingRecord};
use crate::state::table::TableRecord;
use crate::sys::clock;
use crate::sys::shared_memory::{SharedMemory, SharedSlice};

/// What the guests' arenas have room for, according to the options.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Rings of a device.
    pub rings: usize,
    /// Descriptors of the largest ring.
    pub ring_size: usize,
}

/// Reads what `file`, the arena of guest `number`, says.
///
/// # Errors
/// It is no arena of this version, or cannot be read.
pub fn read(number: u64, file: BorrowedFd<'_>, room: Room) -> io::Result<Guest> {
    let copy =
        |offset: usize, len: usize| SharedMemory::copy_of(file, offset as u64, len).map(Arc::new);
    let beginning = copy(0, size_of::<Header>())?;
    let header = SharedSlice::<Header>::new(&beginning, 0, 1);
    let header = &header[0];
    if load(&header.magic) != MAGIC || header.layout.load(Ordering::Relaxed) != LAYOUT {
        let text = "its state is not of this version";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let (counters_offset, rings_offset) = arena::fixed_offsets();
    let used = counters::used_blocks(&header.counter_blocks);
    let counters = copy(counters_offset, used * size_of::<Block>())?;
    let blocks = SharedSlice::<Block>::new(&counters, 0, used);

    let page = rustix::param::page_size();
    let records = (room.rings * size_of::<RingRecord>()).next_multiple_of(page);
    let slots_len = room.ring_size * size_of::<RequestSlot>();
    let mut rings = Vec::new();
    for index in 0..room.rings {
        let slots = copy(rings_offset + records + index * slots_len, slots_len)?;
        let slots = SharedSlice::<RequestSlot>::new(&slots, 0, room.ring_size);
        rings.push(ring(&slots));
    }
    let tables = || {
        let others = [&header.files, &header.locks];
        header.shards.iter().chain(others)
    };
    let sum = |tables: &mut dyn Iterator<Item = &TableRecord>,
               of: fn(&TableRecord) -> &AtomicU64| {
        tables.fold(0_u64, |sum, table| sum.saturating_add(load(of(table))))
    };
    Ok(Guest {
        number,
        unavailable: None,
        connected: load(&header.connected),
        session: session(header),
        inodes: sum(&mut header.shards.iter(), |table| &table.records),
        open_files: load(&header.files.records),
        locks: load(&header.locks.records),
        descriptors: sum(&mut tables(), |table| &table.descriptors),
        rings,
        oldest: oldest(&blocks),
        restarts: restarts(header),
        disconnected_ns: match load(&header.disconnected) {
            0 => None,
            since => Some(now(ClockId::Monotonic).saturating_sub(since)),
        },
        operations: operations(&blocks),
    })
}

/// The largest number that is told. More is not a count but a worker's invention, and sums of it
/// would not fit.
const MOST: u64 = 1 << 48;

fn load(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

fn count(number: &AtomicU64) -> u64 {
    load(number).min(MOST)
}

fn now(clock: ClockId) -> u64 {
    clock::now(clock).max(0).cast_unsigned()
}

fn session(header: &Header) -> Option<Session> {
    let offer = header.session.offer()?;
    let spoken = match offer.major {
        KERNEL_VERSION => offer.minor.min(KERNEL_MINOR_VERSION),
        _ => KERNEL_MINOR_VERSION,
    };
    Some(Session {
        offered: (offer.major, offer.minor),
        spoken: (KERNEL_VERSION, spoken),
        flags: offer.features().bits(),
        kernel_at_least: kernel_of_minor(offer.minor).map(str::to_owned),
    })
}

fn ring(slots: &[RequestSlot]) -> Ring {
    let mut ring = Ring::default();
    for slot in slots {
        let (in_flight, running) = slot.is_in_flight_and_running();
        ring.in_flight += u64::from(in_flight);
        ring.running += u64::from(running);
    }
    ring
}

fn oldest(blocks: &[Block]) -> Option<Oldest> {
    let running = blocks.iter().map(|block| load(&block.running));
    let oldest = running.filter(|running| *running != 0).min()?;
    let age = now(ClockId::MonotonicCoarse).saturating_sub(oldest & !RUNNING_OPCODE);
    Some(Oldest {
        opcode: name_of(oldest & RUNNING_OPCODE).to_owned(),
        age_ns: age,
    })
}

fn name_of(number: u64) -> &'static str {
    let opcode = u32::try_from(number).ok().map(Opcode::try_from);
    match opcode {
        Some(Ok(opcode)) => opcode.name(),
        _ => "INVALID",
    }
}

fn restarts(header: &Header) -> Restarts {
    let count = u64::from(header.deaths.load(Ordering::Relaxed));
    let signal = header.last_signal.load(Ordering::Relaxed);
    let reason = match signal {
        0 => "a fault that it found itself".to_owned(),
        STOPPED => "stopped for a reload".to_owned(),
        DISCONNECTED => "the connection was lost".to_owned(),
        signal => format!("signal {signal}"),
    };
    let died = load(&header.died);
    Restarts {
        count,
        last_reason: (count > 0 || signal != 0).then_some(reason),
        is_paused: died != 0,
        last_pause_ns: load(&header.last_pause),
        longest_pause_ns: load(&header.longest_pause),
        paused_ns: match died {
            0 => load(&header.paused),
            died => {
                let present = now(ClockId::Monotonic).saturating_sub(died);
                load(&header.paused).saturating_add(present)
            }
        },
    }
}

fn operations(blocks: &[Block]) -> Vec<model::Operation> {
    let all = (0..OPERATIONS).map(|number| {
        let mut sum = model::Operation {
            opcode: name_of(number as u64).to_owned(),
            latency: Latency {
                buckets: vec![0; counters::BUCKETS + 1],
                ..Latency::default()
            },
            ..model::Operation::default()
        };
        for block in blocks {
            add(&mut sum, &block.operations[number]);
        }
        sum
    });
    all.filter(|operation| operation.requests > 0).collect()
}

fn add(sum: &mut model::Operation, counted: &counters::Operation) {
    let add = |sum: &mut u64, number: &AtomicU64| *sum += count(number);
    add(&mut sum.requests, &counted.requests);
    add(&mut sum.errors, &counted.errors);
    add(&mut sum.bytes_in, &counted.bytes_in);
    add(&mut sum.bytes_out, &counted.bytes_out);
    add(&mut sum.latency.sum_ns, &counted.nanoseconds);
    let numbers = counted.buckets.iter().chain([&counted.longer]);
    for (sum, number) in sum.latency.buckets.iter_mut().zip(numbers) {
        add(sum, number);
    }
    let buckets = sum.latency.buckets.iter();
    sum.latency.measured = buckets.fold(0, |sum, one| sum.saturating_add(*one));
}

#[cfg(test)]
mod tests {
    use gangplank_fuse::InitIn;
    use proptest::prelude::*;

    use super::*;
    use crate::state::arena::{Arena, Limits};
    use crate::state::counters::{Counters, Message};
    use crate::state::recovery;
    use crate::state::requests::RingRequests;

    const ROOM: Room = Room {
        rings: Limits::SMALL.rings,
        ring_size: Limits::SMALL.ring_size,
    };

    #[test]
    fn what_a_worker_noted_is_read() {
        let arena = Arena::small();
        let counters = Counters::new(&arena);
        for is_error in [true, false, false] {
            counters.begin(Opcode::Lookup, true).count(Message {
                request: 50,
                reply: 16,
                is_error,
            });
        }
        let _running = counters.begin(Opcode::Fsync, true);
        arena.header().session.open(&InitIn {
            major: KERNEL_VERSION,
            minor: 39,
            ..InitIn::default()
        });
        let ring = RingRequests::new(&arena, 1).unwrap();
        ring.take([3, 4]).unwrap();
        ring.start(4);
        recovery::note_death(&arena, Some(libc::SIGKILL));
        let guest = read(7, arena.file().unwrap(), ROOM).unwrap();
        let [lookup] = &guest.operations[..] else {
            panic!("{guest:?}");
        };
        assert_eq!(lookup.opcode, "LOOKUP");
        assert_eq!((lookup.requests, lookup.errors), (3, 1));
        assert_eq!((lookup.bytes_in, lookup.bytes_out), (150, 48));
        assert_eq!(lookup.latency.measured, 1);
        let session = guest.session.clone().unwrap();
        assert_eq!((session.offered, session.spoken), ((7, 39), (7, 39)));
        assert_eq!(session.kernel_at_least.as_deref(), Some("6.6"));
        assert_eq!((guest.rings[1].in_flight, guest.rings[1].running), (2, 1));
        assert_eq!(guest.rings[0].in_flight, 0);
        assert_eq!(guest.oldest.as_ref().unwrap().opcode, "FSYNC");
        assert_eq!(guest.restarts.count, 1);
        assert_eq!(guest.restarts.last_reason.as_deref(), Some("signal 9"));
        assert!(guest.restarts.is_paused);
        recovery::note_recovered(&arena);
        let guest = read(7, arena.file().unwrap(), ROOM).unwrap();
        assert!(guest.restarts.longest_pause_ns > 0 && !guest.restarts.is_paused);
        assert_eq!(guest.restarts.paused_ns, guest.restarts.last_pause_ns);
    }

    #[test]
    fn a_file_that_a_worker_has_shortened_is_an_error() {
        let arena = Arena::small();
        let file = arena.file().unwrap();
        rustix::fs::ftruncate(file, 4096).unwrap();
        let error = read(1, file, ROOM).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_a_worker_writes_is_read_without_a_panic(
            word in prop_oneof![Just(u64::MAX), Just(1 << 63), any::<u64>()],
            blocks in any::<u32>(),
            every in 1_usize..9,
        ) {
            let arena = Arena::small();
            let file = arena.file().unwrap();
            let len = arena::fixed_offsets().1 + (1 << 13);
            let bytes: Vec<u8> = (0..len / 8)
                .flat_map(|index| if index % every == 0 { word } else { 0 }.to_ne_bytes())
                .collect();
            // All but the magic number and the version.
            rustix::io::pwrite(file, &bytes[16..], 16).unwrap();
            arena.header().counter_blocks.store(blocks, Ordering::Relaxed);
            let guest = read(1, file, ROOM).unwrap();
            prop_assert!(guest.operations.len() <= OPERATIONS);
            prop_assert!(guest.in_flight() <= 16);
            let mut text = String::new();
            let status = model::Status { guests: vec![guest], ..model::Status::empty() };
            super::super::metrics::encode(&mut text, status.clone()).unwrap();
            serde_json::to_string(&status).unwrap();
        }
    }
}
