//! Chains that virtio allows and no kernel builds.

use anyhow::{Result, ensure};
use gangplank_fuse::reply::Reply;
use gangplank_fuse::{NodeId, Operation, ReadIn, reply};
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::changing_request::change_while_served;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::ring::Segment;
use rustix::io::Errno;

use super::{SETUP, readable, reply_at, with_guest, writable};

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
        // Every second byte, so that no two segments are adjacent.
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
        // The border between two segments may be anywhere.
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
    with_guest(|guest, _| Ok(change_while_served(guest, 300)?))
}

#[test]
fn a_read_into_a_thousand_segments_gets_every_byte() -> Result<()> {
    let fixture = Fixture::new(&["--num-request-queues=2"])?;
    let content: Vec<u8> = (0..200_000u32)
        .map(|index| index.to_le_bytes()[index as usize % 3])
        .collect();
    std::fs::write(fixture.share().join("file"), &content)?;
    // The kernel accepts at most 1,024 segments in one call.
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
    let fixture = Fixture::new(&["--queue-size=4096"])?;
    let content = vec![7; 4000];
    std::fs::write(fixture.share().join("file"), &content)?;
    let mut guest = fixture.guest(&Setup {
        ring_size: 4096,
        ..SETUP
    })?;
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
    // The payload is scattered, so the test reads only the header: its length must be the used
    // length.
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
