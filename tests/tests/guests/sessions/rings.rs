//! Rings of all sizes and features, several of them, full of requests, stopped and started again.

use std::ffi::CString;
use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{FsyncIn, GetattrIn, NodeId, Operation, ReadIn, WriteIn};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::ring::CallKind;
use gangplank_tests::driver::vhost_user::{message, ring_state};
use gangplank_tests::driver::{Driver, NodeAndFile, Setup, Ticket};
use rustix::fs::{Advice, OFlags, fadvise};

const GETATTR: Operation<'static> = Operation::Getattr(GetattrIn {
    getattr_flags: 0,
    dummy: 0,
    fh: 0,
});

/// Sends `count` requests in groups of `depth` and waits for each group. No reply and no
/// notification may be lost.
fn exercise(guest: &mut Driver, queue: usize, count: usize, depth: usize) -> Result<()> {
    let mut done = 0;
    while done < count {
        let tickets = (0..depth)
            .map(|_| guest.submit(queue, NodeId::ROOT, GETATTR, &[], 256))
            .collect::<Result<Vec<_>, _>>()?;
        // The last first: a driver may take replies in any order.
        for ticket in tickets.into_iter().rev() {
            guest.finish(ticket)?;
        }
        done += depth;
    }
    Ok(())
}

#[test]
fn every_combination_of_features_works() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    for indirect in [false, true] {
        for event_idx in [false, true] {
            for call in [CallKind::Event, CallKind::Pipe, CallKind::Socket] {
                let setup = Setup {
                    indirect,
                    event_idx,
                    call,
                    ..Setup::default()
                };
                let mut guest = fixture
                    .guest(&setup)
                    .with_context(|| format!("{setup:?}"))?;
                for depth in [1, 2, 7, 40] {
                    exercise(&mut guest, 1, 400, depth).with_context(|| {
                        format!("{setup:?}, {depth} at once\n{}", fixture.log())
                    })?;
                }
                // Often enough for the 16-bit indices to wrap around.
                if event_idx && indirect && call == CallKind::Event {
                    exercise(&mut guest, 1, 70_000, 100).context("indices that wrap around")?;
                }
            }
        }
    }
    fixture.survive(&[])
}

/// Other threads serve requests that would delay others, and replies come in any order.
#[test]
fn what_waits_for_the_disk_among_others_is_answered_right() -> Result<()> {
    const PART: usize = 64 << 10;
    const PARTS: usize = 48;
    let fixture = Fixture::quiet(&[])?;
    let path = fixture.share().join("cold");
    let content: Vec<u8> = (0..PART * PARTS / 4)
        .flat_map(|number| u32::try_from(number).unwrap_or_default().to_le_bytes())
        .collect();
    fs::write(&path, &content)?;
    let host = fs::File::open(&path)?;
    let setup = Setup {
        ring_size: 1024,
        memory: 64 << 20,
        ..Setup::default()
    };
    let mut guest = fixture.guest(&setup)?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"cold")?.nodeid);
    let file = guest.open(node, OFlags::RDONLY)?;
    for _ in 0..5 {
        host.sync_all()?;
        fadvise(&host, 0, None, Advice::DontNeed)?;
        let mut asked = Vec::new();
        for part in 0..PARTS {
            // The last reads past the end.
            let offset = PART * part + PART / 2;
            let read = Operation::Read(ReadIn {
                fh: file.get(),
                offset: offset as u64,
                size: u32::try_from(PART)?,
                ..ReadIn::default()
            });
            let fsync = Operation::Fsync(FsyncIn {
                fh: file.get(),
                ..FsyncIn::default()
            });
            asked.push((guest.submit(1, node, read, &[], PART)?, Some(offset)));
            asked.push((guest.submit(1, node, fsync, &[], 0)?, None));
            asked.push((guest.submit(1, NodeId::ROOT, GETATTR, &[], 256)?, None));
        }
        for (ticket, offset) in asked {
            let answer = guest.finish(ticket)?;
            if let Some(offset) = offset {
                let end = content.len().min(offset + PART);
                ensure!(
                    content.get(offset..end) == Some(&answer[..]),
                    "{} bytes at {offset} are not those of the file",
                    answer.len()
                );
            }
        }
    }
    guest.destroy()?;
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn rings_of_every_size_can_be_full() -> Result<()> {
    let fixture = Fixture::quiet(&["--queue-size=32768"])?;
    for ring_size in [2, 4, 256, 1024, 4096, 32_768] {
        for indirect in [false, true] {
            // A request that is not indirect takes four descriptors.
            let depth = if indirect {
                usize::from(ring_size)
            } else {
                usize::from(ring_size) / 4
            };
            if depth == 0 {
                continue;
            }
            let setup = Setup {
                ring_size,
                indirect,
                memory: 64 << 20,
                ..Setup::default()
            };
            let mut guest = Driver::connect(fixture.socket(), &setup)?;
            if indirect || ring_size > 4 {
                guest.init()?;
            } else {
                guest.init().with_context(|| format!("{setup:?}"))?;
            }
            exercise(&mut guest, 1, 2 * depth, depth)
                .with_context(|| format!("{setup:?}, {depth} at once\n{}", fixture.log()))?;
        }
    }
    fixture.survive(&[])
}

#[test]
fn as_many_request_queues_as_are_set_up_are_served() -> Result<()> {
    for (announced, used) in [(1, 1), (2, 2), (1, 4), (4, 8), (16, 16)] {
        let fixture = Fixture::quiet(&[&format!("--num-request-queues={announced}")])?;
        let setup = Setup {
            request_queues: used,
            ..Setup::default()
        };
        let mut guest = fixture
            .guest(&setup)
            .with_context(|| format!("{used} queues, {announced} announced"))?;
        let config = guest
            .peer
            .ask(message::GET_CONFIG, &config_request(36, 4))?;
        ensure!(
            config.get(12..16) == Some(&u32::to_le_bytes(announced)[..]),
            "announced: {config:?}"
        );
        let mut tickets: Vec<Ticket> = Vec::new();
        for _ in 0..20 {
            for queue in 1..=usize::try_from(used)? {
                tickets.push(guest.submit(queue, NodeId::ROOT, GETATTR, &[], 256)?);
            }
        }
        for ticket in tickets {
            guest.finish(ticket)?;
        }
        drop(guest);
        fixture.survive(&[])?;
    }
    Ok(())
}

/// Payload of GET_CONFIG.
fn config_request(offset: u32, size: u32) -> Vec<u8> {
    let mut payload = [offset, size, 0].map(u32::to_le_bytes).concat();
    payload.resize(12 + usize::try_from(size).unwrap_or_default(), 0);
    payload
}

#[test]
fn a_pool_of_threads_serves_as_well() -> Result<()> {
    let fixture = Fixture::new(&["--thread-pool-size=4"])?;
    let mut guest = fixture.guest(&Setup {
        request_queues: 2,
        ring_size: 1024,
        ..Setup::default()
    })?;
    for depth in [1, 10, 100] {
        exercise(&mut guest, 1, 500, depth)?;
        exercise(&mut guest, 2, 500, depth)?;
    }
    drop(guest);
    fixture.survive(&[])
}

/// Submits many writes of 64 KiB to one file without waiting.
fn submit_writes(guest: &mut Driver, to: NodeAndFile, count: u64) -> Result<Vec<Ticket>> {
    (0..count)
        .map(|index| {
            let args = WriteIn {
                fh: to.file.get(),
                offset: index * 65_536,
                size: 65_536,
                ..WriteIn::default()
            };
            let data = vec![u8::try_from(index % 251).unwrap_or_default() + 1; 65_536];
            Ok(guest.submit(1, to.node, Operation::Write(args), &data, 64)?)
        })
        .collect()
}

#[test]
fn stopping_a_ring_waits_for_what_was_taken_and_leaves_the_rest() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    for pool in [false, true] {
        let setup = Setup {
            ring_size: 1024,
            memory: 64 << 20,
            ..Setup::default()
        };
        let mut guest = fixture.guest(&setup)?;
        let name = CString::new(format!("written{pool}"))?;
        let file = guest.create(NodeId::ROOT, &name, 0o644)?;
        let tickets = submit_writes(&mut guest, file, 200)?;
        let base = guest.stop_ring(1)?;
        // No reply comes any more, and every taken request has had its reply.
        let used = guest.rings[1].used_index(&guest.memory);
        ensure!(
            base == u32::from(used),
            "stopped at {base}, {used} were given back"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
        ensure!(
            guest.rings[1].used_index(&guest.memory) == used,
            "a stopped ring is still served"
        );
        guest.start_ring(1)?;
        guest.rings[1].kick_anyway()?;
        for ticket in tickets {
            guest.finish(ticket)?;
        }
        let written = fs::read(fixture.share().join(name.to_str()?))?;
        ensure!(
            written.len() == 200 * 65_536,
            "{} bytes are written",
            written.len()
        );
        let whole = written.chunks(65_536).zip(0u64..).all(|(chunk, index)| {
            let expected = u8::try_from(index % 251).unwrap_or_default() + 1;
            chunk.iter().all(|byte| *byte == expected)
        });
        ensure!(whole, "what was written is something else");
    }
    fixture.survive(&[])
}

#[test]
fn a_ring_that_is_disabled_and_enabled_goes_on_where_it_was() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let setup = Setup {
        ring_size: 1024,
        memory: 64 << 20,
        ..Setup::default()
    };
    let mut guest = fixture.guest(&setup)?;
    let file = guest.create(NodeId::ROOT, c"written", 0o644)?;
    for _ in 0..10 {
        let tickets = submit_writes(&mut guest, file, 50)?;
        guest
            .peer
            .tell(message::SET_VRING_ENABLE, &ring_state(1, 0), &[])?;
        let used = guest.rings[1].used_index(&guest.memory);
        std::thread::sleep(std::time::Duration::from_millis(5));
        ensure!(
            guest.rings[1].used_index(&guest.memory) == used,
            "a disabled ring is still served"
        );
        guest
            .peer
            .tell(message::SET_VRING_ENABLE, &ring_state(1, 1), &[])?;
        for ticket in tickets {
            guest.finish(ticket)?;
        }
    }
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn a_call_pipe_may_be_full_or_closed() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    for call in [CallKind::Pipe, CallKind::Socket] {
        let setup = Setup {
            call,
            ..Setup::default()
        };
        let mut guest = fixture.guest(&setup)?;
        ensure!(
            guest.rings[1].stuff_call() > 0,
            "nothing fits into the pipe"
        );
        let start = guest.rings[1].used_index(&guest.memory);
        let tickets = (0..20)
            .map(|_| guest.submit(1, NodeId::ROOT, GETATTR, &[], 256))
            .collect::<Result<Vec<_>, _>>()?;
        // A full pipe wakes the guest just as well.
        for ticket in tickets {
            guest.finish(ticket)?;
        }
        ensure!(guest.rings[1].used_index(&guest.memory) == start.wrapping_add(20));
        guest.rings[1].drain_call();
        exercise(&mut guest, 1, 50, 5).with_context(|| format!("{call:?}: emptied"))?;
        // The reading end is closed: no one is notified, but the requests are served.
        guest.rings[1].close_call();
        let ticket = guest.submit(1, NodeId::ROOT, GETATTR, &[], 256)?;
        guest.stop_ring(1)?;
        ensure!(guest.is_finished(&ticket)? || guest.rings[1].used_index(&guest.memory) >= start);
    }
    fixture.survive(&[])
}
