//! Ring addresses and kick and call descriptors that are impossible or hostile.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::memory::{GUEST_BASE, Memory, USER_BASE};
use gangplank_tests::driver::vhost_user::{
    memory_table, message, ring_addresses, ring_state, words,
};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{assert_refused, negotiated, shared};

#[test]
fn ring_setups_that_cannot_be_are_refused() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let memory = Memory::new(1 << 20)?;
    let at = USER_BASE;
    let end = USER_BASE + memory.len();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    let sizes = [0, 3, 1000, 32_769, 65_535, 65_536, u32::MAX];
    let mut cases: Vec<(String, u32, Vec<u8>)> = sizes
        .into_iter()
        .map(|size| {
            (
                format!("a ring of {size}"),
                message::SET_VRING_NUM,
                ring_state(1, size),
            )
        })
        .collect();
    for ring in [64, 255, 1000, u32::MAX] {
        for request in [
            message::SET_VRING_NUM,
            message::SET_VRING_BASE,
            message::SET_VRING_ENABLE,
        ] {
            cases.push((
                format!("request {request} of ring {ring}"),
                request,
                ring_state(ring, 1),
            ));
        }
        let addresses = ring_addresses(ring, at, at + 0x1000, at + 0x2000, 0);
        cases.push((
            format!("addresses of ring {ring}"),
            message::SET_VRING_ADDR,
            addresses,
        ));
    }
    for (descriptors, used, available) in [
        (end, at, at),
        (at, end, at),
        (at, at, end),
        (0, at, at),
        (u64::MAX, u64::MAX, u64::MAX),
        (GUEST_BASE, GUEST_BASE, GUEST_BASE),
        (at + 1, at, at),
        (at, at + 2, at),
        (at, at, at + 1),
    ] {
        let addresses = ring_addresses(1, descriptors, used, available, 0);
        let case = format!("a ring at {descriptors:#x}, {used:#x}, {available:#x}");
        cases.push((case, message::SET_VRING_ADDR, addresses));
    }
    for (case, request, payload) in cases {
        let peer = negotiated(&fixture)?;
        peer.tell(
            message::SET_MEM_TABLE,
            &memory_table(&[memory.region()]),
            &[memory.file()],
        )?;
        let refused = peer.tell(request, &payload, &[]);
        if request == message::SET_VRING_NUM && refused.is_ok() {
            // A size that is no power of two is refused together with the ring's addresses.
            let addresses = ring_addresses(1, at, at + 0x10_000, at + 0x20_000, 0);
            let refused = peer.tell(message::SET_VRING_ADDR, &addresses, &[]);
            assert_refused(&case, refused)?;
            continue;
        }
        assert_refused(&case, refused)?;
    }
    for ring in [64u64, 255] {
        for request in [
            message::SET_VRING_KICK,
            message::SET_VRING_CALL,
            message::SET_VRING_ERR,
        ] {
            let peer = negotiated(&fixture)?;
            let result = peer.tell(request, &words(&[ring]), &[event.as_fd()]);
            assert_refused(&format!("request {request} of ring {ring}"), result)?;
        }
    }
    fixture.survive(&[])
}

/// A guest whose ring 1 has an odd `kick` or `call` descriptor. Ring 2 must continue.
fn with_odd_descriptor(fixture: &Fixture, request: u32, descriptor: OwnedFd) -> Result<()> {
    let setup = Setup {
        request_queues: 2,
        ..Setup::default()
    };
    let mut guest = fixture.guest(&setup)?;
    let described = format!("request {request} with {descriptor:?}");
    let outcome = guest
        .peer
        .tell(request, &words(&[1]), &[descriptor.as_fd()]);
    drop(descriptor);
    match outcome {
        Ok(()) => {
            let ticket =
                guest.submit(1, NodeId::ROOT, gangplank_fuse::Operation::Statfs, &[], 512)?;
            guest.queue = 2;
            for _ in 0..20 {
                guest
                    .getattr(NodeId::ROOT, None)
                    .with_context(|| described.clone())?;
            }
            // Ring 1 may or may not be served, depending on the descriptor.
            guest.is_finished(&ticket)?;
            guest
                .stop_ring(1)
                .with_context(|| format!("{described}: GET_VRING_BASE"))?;
            Ok(())
        }
        refused => assert_refused(&described, refused),
    }
}

#[test]
fn kick_and_call_descriptors_of_any_kind_hurt_nobody() -> Result<()> {
    let mut fixture = Fixture::new(&[])?;
    for request in [
        message::SET_VRING_KICK,
        message::SET_VRING_CALL,
        message::SET_VRING_ERR,
    ] {
        let (closed_reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        drop(writer);
        let (reader, closed_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        drop(reader);
        let (socket, far) = UnixStream::pair()?;
        drop(far);
        let (full_reader, full) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        while rustix::io::write(&full, &[0; 4096]).is_ok() {}
        // Both ends share the flag: this descriptor blocks a careless reader.
        rustix::fs::fcntl_setfl(&full, rustix::fs::OFlags::empty())?;
        for descriptor in [
            closed_reader,
            closed_writer,
            OwnedFd::from(socket),
            full,
            full_reader,
            OwnedFd::from(tempfile::tempfile()?),
            OwnedFd::from(File::open("/dev/null")?),
            OwnedFd::from(File::open("/dev/zero")?),
            OwnedFd::from(File::open(fixture.share())?),
            shared(4096)?,
        ] {
            with_odd_descriptor(&fixture, request, descriptor)?;
        }
    }
    fixture.neighbour_goes_on()?;
    fixture.survive(&[])
}

/// Processor time that a process has used, in clock ticks of 10 ms.
fn ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    // utime and stime are fields 14 and 15. The first field here is the third.
    let field =
        |index: usize| -> Result<u64> { Ok(fields.get(index).context("a field")?.parse()?) };
    Ok(field(11)? + field(12)?)
}

#[test]
fn a_kick_descriptor_that_is_always_ready_does_not_burn_a_processor() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let mut guests = Vec::new();
    let (closed, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    drop(writer);
    let (socket, far) = UnixStream::pair()?;
    drop(far);
    for descriptor in [closed, OwnedFd::from(socket)] {
        let guest = fixture.guest(&Setup::default())?;
        guest.stop_ring(1)?;
        // The daemon may refuse the descriptor, or serve without polling it.
        let _ = gangplank_tests::driver::start_ring(&guest.peer, &guest.memory, &guest.rings[1]);
        let _ = guest
            .peer
            .tell(message::SET_VRING_KICK, &words(&[1]), &[descriptor.as_fd()]);
        let _ = guest
            .peer
            .tell(message::SET_VRING_ENABLE, &ring_state(1, 1), &[]);
        guests.push(guest);
    }
    let workers: Vec<u32> = fixture
        .guest_processes()?
        .into_iter()
        .map(|(_, worker)| worker)
        .collect();
    let all = || -> Result<u64> { workers.iter().map(|worker| ticks(*worker)).sum() };
    let before = all()?;
    std::thread::sleep(Duration::from_secs(1));
    let used = all()? - before;
    ensure!(
        used < 30,
        "{used} ticks of processor time in a second of doing nothing"
    );
    drop(guests);
    fixture.survive(&[])
}
