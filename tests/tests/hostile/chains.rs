//! Descriptor chains and rings that break the rules of virtio: the ring stops or the request fails, and nobody else notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::reply::{self, Reply};
use gangplank_fuse::{GetattrIn, NodeId, Operation, ReadIn};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::memory::{GUEST_BASE, Memory};
use gangplank_tests::driver::ring::{
    CallKind, Descriptor, INDIRECT, Layout, NEXT, Ring, Segment, WRITE,
};
use gangplank_tests::driver::vhost_user::{message, ring_state};
use gangplank_tests::driver::{Driver, Setup};
use rustix::io::Errno;

/// How long the daemon may take to declare a ring broken.
const LIMIT: Duration = Duration::from_secs(10);

const GETATTR: Operation<'static> = Operation::Getattr(GetattrIn {
    getattr_flags: 0,
    dummy: 0,
    fh: 0,
});

const SETUP: Setup = Setup {
    request_queues: 2,
    ring_size: 256,
    indirect: true,
    event_idx: false,
    call: CallKind::Event,
    memory: 16 << 20,
};

/// Addresses that the malformed chains refer to.
struct Places {
    /// 4 KiB of memory with a GETATTR of the root in it.
    request: u64,
    /// 4 KiB of memory.
    reply: u64,
    /// 4 KiB of memory for an indirect table.
    table: u64,
    /// The first address behind guest memory.
    end: u64,
}

impl Places {
    fn new(guest: &mut Driver) -> Result<Self> {
        let (_, bytes) = guest.encode(NodeId::ROOT, GETATTR)?;
        let [request, reply, table] = [(); 3].map(|()| guest.memory.allocate(4096));
        let request = request?;
        guest.memory.write(request, &bytes);
        Ok(Self {
            request,
            reply: reply?,
            table: table?,
            end: GUEST_BASE + guest.memory.len(),
        })
    }
}

const fn entry(address: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        len,
        flags,
        next,
    }
}

fn readable(address: u64, len: u32) -> Segment {
    Segment {
        address,
        len,
        writable: false,
    }
}

fn writable(address: u64, len: u32) -> Segment {
    Segment {
        address,
        len,
        writable: true,
    }
}

/// A malformed chain stops ring 1, the daemon says so, ring 2 goes on, and ring 1 works again once it is set up anew.
fn assert_stops(case: &str, offer: impl FnOnce(&mut Driver, &Places) -> Result<()>) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    let places = Places::new(&mut guest)?;
    offer(&mut guest, &places)?;
    guest.rings[1]
        .wait_for_error(LIMIT)
        .with_context(|| format!("{case}\n{}", fixture.log()))?;
    guest.queue = 2;
    guest
        .getattr(NodeId::ROOT, None)
        .with_context(|| format!("{case}: the other ring"))?;

    guest.stop_ring(1)?;
    let layout = *guest.rings[1].layout();
    guest.rings[1] = Ring::new(&mut guest.memory, layout)?;
    guest.start_ring(1)?;
    guest.queue = 1;
    guest
        .getattr(NodeId::ROOT, None)
        .with_context(|| format!("{case}: the ring set up anew"))?;
    drop(guest);
    fixture
        .survive(&["a ring is stopped"])
        .with_context(|| case.to_owned())
}

#[test]
fn chains_that_do_not_end_stop_their_ring() -> Result<()> {
    assert_stops("a chain of one that is its own next", |guest, at| {
        Ok(guest.offer_table(1, &[entry(at.request, 8, NEXT, 0)])?)
    })?;
    assert_stops("a loop of two", |guest, at| {
        let table = [entry(at.request, 8, NEXT, 1), entry(at.request, 8, NEXT, 0)];
        Ok(guest.offer_table(1, &table)?)
    })?;
    assert_stops("a loop within an indirect table", |guest, at| {
        let inner = [entry(at.request, 8, NEXT, 1), entry(at.request, 8, NEXT, 0)];
        guest
            .memory
            .write(at.table, &inner.map(Descriptor::to_bytes).concat());
        Ok(guest.offer_table(1, &[entry(at.table, 32, INDIRECT, 0)])?)
    })
}

#[test]
fn chains_that_leave_their_table_stop_their_ring() -> Result<()> {
    for next in [256, 257, u16::MAX] {
        assert_stops(&format!("next is {next}"), |guest, at| {
            Ok(guest.offer_table(1, &[entry(at.request, 56, NEXT, next)])?)
        })?;
    }
    for head in [256, u16::MAX] {
        assert_stops(&format!("the head is {head}"), |guest, _| {
            guest.rings[1].publish(&guest.memory, head);
            Ok(guest.rings[1].kick_anyway()?)
        })?;
    }
    Ok(())
}

#[test]
fn indirect_tables_that_break_the_rules_stop_their_ring() -> Result<()> {
    assert_stops("an indirect table within an indirect table", |guest, at| {
        let inner = entry(at.table, 16, INDIRECT, 0).to_bytes();
        guest.memory.write(at.table, &inner);
        Ok(guest.offer_table(1, &[entry(at.table, 16, INDIRECT, 0)])?)
    })?;
    for len in [0, 8, 17, u32::MAX, u32::MAX - 15] {
        assert_stops(&format!("an indirect table of {len} bytes"), |guest, at| {
            let inner = entry(at.request, 56, 0, 0).to_bytes();
            guest.memory.write(at.table, &inner);
            Ok(guest.offer_table(1, &[entry(at.table, len, INDIRECT, 0)])?)
        })?;
    }
    assert_stops("an indirect table outside memory", |guest, at| {
        Ok(guest.offer_table(1, &[entry(at.end, 32, INDIRECT, 0)])?)
    })?;
    assert_stops("an indirect table that ends outside memory", |guest, at| {
        let inner = entry(at.request, 8, NEXT, 1).to_bytes();
        guest.memory.write(at.end - 16, &inner);
        Ok(guest.offer_table(1, &[entry(at.end - 16, 32, INDIRECT, 0)])?)
    })
}

#[test]
fn memory_that_the_guest_does_not_have_stops_the_ring() -> Result<()> {
    let end = GUEST_BASE + SETUP.memory;
    let outside = [
        (0, 56),
        (end, 1),
        (end - 1, 2),
        (GUEST_BASE, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX - 10, 56),
        (GUEST_BASE - 1, 56),
    ];
    for (address, len) in outside {
        assert_stops(
            &format!("{len} readable bytes at {address:#x}"),
            |guest, at| {
                let table = [entry(address, len, NEXT, 1), entry(at.reply, 120, WRITE, 0)];
                Ok(guest.offer_table(1, &table)?)
            },
        )?;
        assert_stops(
            &format!("{len} writable bytes at {address:#x}"),
            |guest, at| {
                let table = [
                    entry(at.request, 56, NEXT, 1),
                    entry(address, len, WRITE, 0),
                ];
                Ok(guest.offer_table(1, &table)?)
            },
        )?;
    }
    assert_stops("lengths that add up to more than 4 GiB", |guest, at| {
        let half = u32::try_from(8 << 20)?;
        let mut table: Vec<_> = (1..=255)
            .map(|next| entry(at.request & !0xfff, half, NEXT, next))
            .collect();
        // 255 times 8 MiB is below 4 GiB; an indirect table holds as many as it takes.
        table.extend_from_within(..);
        table.extend_from_within(..);
        for (next, one) in (1..).zip(&mut table) {
            one.next = next;
        }
        let len = u32::try_from(16 * table.len())?;
        let place = guest.memory.allocate(16 * table.len())?;
        let bytes: Vec<u8> = table.iter().flat_map(|one| one.to_bytes()).collect();
        guest.memory.write(place, &bytes);
        Ok(guest.offer_table(1, &[entry(place, len, INDIRECT, 0)])?)
    })
}

#[test]
fn a_readable_descriptor_behind_a_writable_one_stops_the_ring() -> Result<()> {
    assert_stops("readable after writable", |guest, at| {
        let table = [
            entry(at.request, 40, NEXT, 1),
            entry(at.reply, 120, NEXT | WRITE, 2),
            entry(at.request + 40, 16, 0, 0),
        ];
        Ok(guest.offer_table(1, &table)?)
    })
}

#[test]
fn an_available_index_that_jumps_stops_the_ring() -> Result<()> {
    // INIT was one chain on a ring of 256: up to 257 is a full ring.
    for index in [258, 1000, 0x8000, u16::MAX, 0] {
        assert_stops(
            &format!("the available index jumps to {index}"),
            |guest, _| {
                guest.rings[1].set_available_index(&guest.memory, index);
                Ok(guest.rings[1].kick_anyway()?)
            },
        )?;
    }
    Ok(())
}

#[test]
fn an_available_index_beyond_what_was_filled_in_ends_in_replies_or_a_stop() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    let at = Places::new(&mut guest)?;
    // 256 times the chain at 0, which is taken off the ring again and again, as its slots are all zero.
    guest.rings[1].put_descriptor(&guest.memory, 0, entry(at.request, 56, NEXT, 1));
    guest.rings[1].put_descriptor(&guest.memory, 1, entry(at.reply, 120, WRITE, 0));
    let start = guest.rings[1].used_index(&guest.memory);
    guest.rings[1].set_available_index(&guest.memory, start.wrapping_add(256));
    guest.rings[1].kick_anyway()?;
    let deadline = std::time::Instant::now() + LIMIT;
    while guest.rings[1].used_index(&guest.memory) != start.wrapping_add(256) {
        ensure!(
            std::time::Instant::now() < deadline,
            "not all chains came back"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(guest);
    fixture.survive(&[])
}

/// Sets ring 1 up with its three parts where `places` says (descriptors, available, used), and kicks it.
fn misplaced(places: impl Fn(&Driver) -> [u64; 3]) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    guest.stop_ring(1)?;
    let layout = *guest.rings[1].layout();
    guest.rings[1] = Ring::new(&mut guest.memory, layout)?;
    let [descriptors, available, used] = places(&guest);
    let ring = &mut guest.rings[1];
    (ring.descriptors, ring.available, ring.used) = (descriptors, available, used);
    // An index that says that something is there.
    if available + 4 <= GUEST_BASE + guest.memory.len() {
        guest.memory.write(available + 2, &1u16.to_le_bytes());
    }
    match guest.start_ring(1) {
        Ok(()) => {
            guest.rings[1].kick_anyway()?;
            guest.rings[1]
                .wait_for_error(LIMIT)
                .with_context(|| fixture.log())?;
            guest.queue = 2;
            guest
                .getattr(NodeId::ROOT, None)
                .context("the other ring")?;
            guest
                .stop_ring(1)
                .context("GET_VRING_BASE of the broken ring")?;
        }
        // The frontend is told, or dropped.
        Err(error) => ensure!(error.errno().is_none(), "{error}"),
    }
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn rings_that_end_outside_memory_stop() -> Result<()> {
    let end = |guest: &Driver| GUEST_BASE + guest.memory.len();
    misplaced(|guest| {
        [
            guest.rings[1].descriptors,
            end(guest) - 4,
            guest.rings[1].used,
        ]
    })?;
    misplaced(|guest| {
        [
            guest.rings[1].descriptors,
            end(guest) - 2,
            guest.rings[1].used,
        ]
    })?;
    misplaced(|guest| {
        [
            guest.rings[1].descriptors,
            guest.rings[1].available,
            end(guest) - 4,
        ]
    })?;
    misplaced(|guest| {
        [
            end(guest) - 16,
            guest.rings[1].available,
            guest.rings[1].used - 1,
        ]
    })?;
    misplaced(|guest| {
        [
            end(guest) - 8,
            guest.rings[1].available,
            guest.rings[1].used,
        ]
    })
}

#[test]
fn rings_that_overlap_hurt_nobody_else() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    guest.stop_ring(1)?;
    let layout = *guest.rings[1].layout();
    guest.rings[1] = Ring::new(&mut guest.memory, layout)?;
    let ring = &mut guest.rings[1];
    (ring.available, ring.used) = (ring.descriptors, ring.descriptors);
    guest.start_ring(1)?;
    for index in 0..100u16 {
        guest
            .memory
            .write(guest.rings[1].descriptors + 2, &index.to_le_bytes());
        guest.rings[1].kick_anyway()?;
    }
    guest.queue = 2;
    guest.getattr(NodeId::ROOT, None)?;
    drop(guest);
    fixture.survive(&[])
}

/// One guest whose requests are cut in odd ways, yet get answers.
fn with_guest(test: impl FnOnce(&mut Driver, &Places) -> Result<()>) -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    let places = Places::new(&mut guest)?;
    test(&mut guest, &places).with_context(|| fixture.log())?;
    guest.getattr(NodeId::ROOT, None).context("afterwards")?;
    drop(guest);
    fixture.survive(&[])
}

/// The reply in `len` bytes at `address`.
fn reply_at(memory: &Memory, address: u64, len: u32) -> Result<std::result::Result<Vec<u8>, i32>> {
    let bytes = memory.read(address, usize::try_from(len)?);
    Ok(Reply::decode(&bytes)?.result.map(<[u8]>::to_vec))
}

#[test]
fn empty_descriptors_are_passed_over() -> Result<()> {
    with_guest(|guest, at| {
        let chain = [
            readable(0, 0),
            readable(at.request, 40),
            readable(u64::MAX, 0),
            readable(at.request + 40, 16),
            writable(at.end, 0),
            writable(at.reply, 120),
            writable(at.reply, 0),
        ];
        let used = guest.exchange(1, &chain)?;
        ensure!(used == 120, "{used} bytes of reply");
        let payload = reply_at(&guest.memory, at.reply, used)?.map_err(Errno::from_raw_os_error)?;
        reply::decode_attr(&payload)?;
        Ok(())
    })
}

#[test]
fn a_chain_of_empty_descriptors_alone_comes_back_empty() -> Result<()> {
    with_guest(|guest, at| {
        let used = guest.exchange(1, &[readable(at.request, 0), writable(at.reply, 0)])?;
        ensure!(used == 0, "{used} bytes of reply");
        Ok(())
    })
}

#[test]
fn segments_of_one_byte_make_a_whole_request() -> Result<()> {
    with_guest(|guest, at| {
        // Every second byte, so that neighbours cannot be joined into one segment.
        let request = guest.memory.read(at.request, 56);
        let spread = guest.memory.allocate(4096)?;
        for (index, byte) in (0..).zip(request) {
            guest.memory.write(spread + 2 * index, &[byte]);
        }
        let mut chain: Vec<Segment> = (0..56)
            .map(|index| readable(spread + 2 * index, 1))
            .collect();
        chain.extend((0..120).map(|index| writable(at.reply + 2 * index, 1)));
        let used = guest.exchange(1, &chain)?;
        ensure!(used == 120, "{used} bytes of reply");
        let reply: Vec<u8> = guest
            .memory
            .read(at.reply, 240)
            .into_iter()
            .step_by(2)
            .collect();
        let payload = Reply::decode(&reply)?
            .result
            .map_err(Errno::from_raw_os_error)?;
        reply::decode_attr(payload)?;
        Ok(())
    })
}

#[test]
fn replies_without_room_do_not_come_and_the_ring_goes_on() -> Result<()> {
    with_guest(|guest, at| {
        for room in 0..16 {
            let chain = [readable(at.request, 56), writable(at.reply, room)];
            let used = guest.exchange(1, &chain)?;
            ensure!(used == 0, "{used} bytes of reply in {room} bytes of room");
        }
        let used = guest.exchange(1, &[readable(at.request, 56)])?;
        ensure!(used == 0, "{used} bytes of reply without a writable part");
        for room in 16..120 {
            guest.memory.write(at.reply, &[0xa5; 256]);
            let chain = [readable(at.request, 56), writable(at.reply, room)];
            let used = guest.exchange(1, &chain)?;
            ensure!(used == 16, "{used} bytes of reply in {room} bytes of room");
            let answer = reply_at(&guest.memory, at.reply, used)?;
            ensure!(
                answer == Err(Errno::IO.raw_os_error()),
                "room {room}: {answer:?}"
            );
            let behind = guest.memory.read(at.reply + u64::from(room), 64);
            ensure!(
                behind == [0xa5; 64],
                "something was written behind the {room} bytes of room"
            );
        }
        Ok(())
    })
}

#[test]
fn requests_cut_anywhere_are_refused() -> Result<()> {
    with_guest(|guest, at| {
        for len in 0..56 {
            let chain = [readable(at.request, len), writable(at.reply, 120)];
            let used = guest.exchange(1, &chain)?;
            ensure!(
                used == 16,
                "{used} bytes of reply to {len} bytes of request"
            );
            let answer = reply_at(&guest.memory, at.reply, used)?;
            ensure!(
                answer == Err(Errno::INVAL.raw_os_error()),
                "{len} bytes: {answer:?}"
            );
        }
        // The seam between two segments may be anywhere.
        for seam in 1..56 {
            let chain = [
                readable(at.request, seam),
                readable(at.request + u64::from(seam), 56 - seam),
                writable(at.reply, 120),
            ];
            let used = guest.exchange(1, &chain)?;
            ensure!(used == 120, "{used} bytes of reply with a seam at {seam}");
        }
        Ok(())
    })
}

#[test]
fn request_and_reply_may_share_memory() -> Result<()> {
    with_guest(|guest, at| {
        let chain = [readable(at.request, 56), writable(at.request, 120)];
        let used = guest.exchange(1, &chain)?;
        ensure!(used == 120, "{used} bytes of reply");
        reply_at(&guest.memory, at.request, used)?.map_err(Errno::from_raw_os_error)?;
        Ok(())
    })
}

#[test]
fn a_request_that_changes_while_it_is_served_hurts_nobody() -> Result<()> {
    with_guest(|guest, _| {
        let (_, bytes) = guest.encode(
            NodeId::ROOT,
            Operation::Lookup {
                name: c"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            },
        )?;
        for round in 0..300u32 {
            let (unique, _) = guest.encode(NodeId::ROOT, GETATTR)?;
            let mut bytes = bytes.clone();
            bytes[8..16].copy_from_slice(&unique.get().to_le_bytes());
            let ticket = guest.submit_bytes(1, unique, &bytes, 16 + 256)?;
            let at = ticket.request_address();
            for value in 0u32.. {
                // Length, opcode, node and name: what was checked once must not be looked at again.
                guest
                    .memory
                    .write(at, &value.wrapping_mul(round).to_le_bytes());
                guest.memory.write(at + 4, &(value % 60).to_le_bytes());
                guest.memory.write(at + 16, &u64::from(value).to_le_bytes());
                guest.memory.write(at + 40 + u64::from(value % 30), b"/");
                if guest.is_finished(&ticket)? {
                    break;
                }
            }
            // Whichever of the two the daemon saw, it answered: with success, an error, or nothing that can be used.
            let _ = guest.finish(ticket);
        }
        Ok(())
    })
}

#[test]
fn a_read_into_a_thousand_segments_gets_every_byte() -> Result<()> {
    let fixture = Fixture::new(&["--num-request-queues=2"])?;
    let content: Vec<u8> = (0..200_000u32)
        .map(|index| index.to_le_bytes()[index as usize % 3])
        .collect();
    std::fs::write(fixture.share().join("file"), &content)?;
    // Beyond 1,024 segments the kernel takes no more in one call.
    for (ring_size, segments) in [(1024, 1000), (1024, 1021)] {
        let setup = Setup {
            ring_size,
            indirect: false,
            ..SETUP
        };
        let mut guest = fixture.guest(&setup)?;
        let node = NodeId::new(guest.lookup(NodeId::ROOT, c"file")?.nodeid);
        let file = guest.open(node, rustix::fs::OFlags::RDONLY)?;
        let len = 100 * segments;
        let args = ReadIn {
            fh: file.get(),
            size: len,
            ..ReadIn::default()
        };
        let (_, request) = guest.encode(node, Operation::Read(args))?;
        let at = guest.memory.allocate(request.len())?;
        guest.memory.write(at, &request);
        let reply = guest
            .memory
            .allocate(usize::try_from(segments + 1)? * 128)?;
        let mut chain = vec![
            readable(at, u32::try_from(request.len())?),
            writable(reply, 16),
        ];
        chain.extend((1..=u64::from(segments)).map(|index| writable(reply + 128 * index, 100)));
        let used = guest.exchange(1, &chain)?;
        ensure!(
            used == len + 16,
            "{used} bytes of reply, {len} were asked for"
        );
        let found: Vec<u8> = (1..=u64::from(segments))
            .flat_map(|index| guest.memory.read(reply + 128 * index, 100))
            .collect();
        ensure!(
            found == content[..found.len()],
            "the segments hold other bytes"
        );
    }
    fixture.survive(&[])
}

#[test]
fn more_segments_than_the_kernel_takes_at_once_are_a_short_read_at_worst() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let content = vec![7; 4000];
    std::fs::write(fixture.share().join("file"), &content)?;
    let mut guest = fixture.guest(&SETUP)?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"file")?.nodeid);
    let file = guest.open(node, rustix::fs::OFlags::RDONLY)?;
    let args = ReadIn {
        fh: file.get(),
        size: 4000,
        ..ReadIn::default()
    };
    let (_, request) = guest.encode(node, Operation::Read(args))?;
    let at = guest.memory.allocate(request.len())?;
    guest.memory.write(at, &request);
    let reply = guest.memory.allocate(2 * 4096)?;
    let mut chain = vec![
        readable(at, u32::try_from(request.len())?),
        writable(reply, 16),
    ];
    chain.extend((8..4008).map(|index| writable(reply + 2 * index, 1)));
    let used = guest.exchange(1, &chain)?;
    let header = Reply::decode(&guest.memory.read(reply, 16)).err();
    // The payload is not adjacent, so only the header can be looked at here: its length is what was used.
    ensure!(header.is_some() || used == 16, "{header:?}");
    let stated = u32::from_le_bytes(guest.memory.read(reply, 4).try_into().unwrap_or_default());
    ensure!(
        stated == used,
        "the header says {stated}, the used ring {used}"
    );
    ensure!(used > 1016, "{used} bytes of reply");
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn a_ring_that_is_not_enabled_is_left_alone() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    guest
        .peer
        .tell(message::SET_VRING_ENABLE, &ring_state(1, 0), &[])?;
    let ticket = guest.submit(1, NodeId::ROOT, GETATTR, &[], 256)?;
    guest.queue = 2;
    guest.getattr(NodeId::ROOT, None)?;
    ensure!(!guest.is_finished(&ticket)?, "a disabled ring was served");
    guest
        .peer
        .tell(message::SET_VRING_ENABLE, &ring_state(1, 1), &[])?;
    guest.finish(ticket)?;
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn layouts_of_every_size_work() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&SETUP)?;
    for (index, size) in [(1, 2u16), (1, 4), (1, 1024)] {
        guest.stop_ring(index)?;
        let layout = Layout {
            size,
            ..*guest.rings[index].layout()
        };
        guest.rings[index] = Ring::new(&mut guest.memory, layout)?;
        guest.start_ring(index)?;
        for _ in 0..10 {
            guest
                .getattr(NodeId::ROOT, None)
                .with_context(|| format!("size {size}"))?;
        }
    }
    drop(guest);
    fixture.survive(&[])
}
