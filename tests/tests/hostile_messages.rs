//! A vhost-user peer that sends rubbish: it is refused or loses its connection, and nobody else notices.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::arena::Arena;
use gangplank_tests::driver::memory::{GUEST_BASE, Memory, USER_BASE};
use gangplank_tests::driver::ring::Descriptor;
use gangplank_tests::driver::vhost_user::{
    NEED_REPLY, Peer, REPLY, VERSION, encode, memory_table, message, ring_addresses, ring_state,
    words,
};
use gangplank_tests::driver::{Driver, Error, Setup};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};

/// How long the daemon may take to declare a ring broken.
const LIMIT: Duration = Duration::from_secs(10);

/// Requests that a frontend may send (vhost-user, "Front-end message types"), and some beyond.
const REQUESTS: std::ops::RangeInclusive<u32> = 0..=48;

/// A shared file of `len` bytes.
fn shared(len: u64) -> Result<OwnedFd> {
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len)?;
    Ok(file)
}

/// A peer that has agreed on features, REPLY_ACK among them, and has set nothing up.
fn negotiated(arena: &Arena) -> Result<Peer> {
    let mut peer = Peer::connect(arena.socket())?;
    peer.tell(message::SET_OWNER, &[], &[])?;
    let features = peer.ask_u64(message::GET_FEATURES)?;
    let protocol = peer.ask_u64(message::GET_PROTOCOL_FEATURES)?;
    peer.tell(message::SET_PROTOCOL_FEATURES, &words(&[protocol]), &[])?;
    peer.set_need_reply();
    peer.tell(message::SET_FEATURES, &words(&[features]), &[])?;
    Ok(peer)
}

/// The daemon refuses with an error, or drops the connection; nothing else will do.
fn assert_refused(case: &str, result: gangplank_tests::driver::Result<()>) -> Result<()> {
    match result {
        Err(Error::Refused { .. } | Error::HungUp(_)) => Ok(()),
        Err(error) => Err(error).with_context(|| case.to_owned()),
        Ok(()) => anyhow::bail!("{case}: accepted"),
    }
}

#[test]
fn random_bytes_cost_the_connection() -> Result<()> {
    let arena = Arena::new(&[])?;
    let mut state = 88_172_645_463_325_252u64;
    for len in [1, 11, 12, 13, 100, 1000, 5000, 100_000] {
        for _ in 0..5 {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()[2]
                })
                .collect();
            let peer = Peer::connect(arena.socket())?;
            // The daemon may hang up while it is still being talked to.
            let _ = peer.send_bytes(&bytes, &[]);
            peer.socket().shutdown(std::net::Shutdown::Write).ok();
            peer.wait_for_hang_up()
                .with_context(|| format!("{len} bytes"))?;
        }
    }
    arena.survive(&["is dropped"])
}

#[test]
fn messages_cut_anywhere_cost_the_connection() -> Result<()> {
    let arena = Arena::new(&[])?;
    let whole = encode(message::SET_FEATURES, VERSION, 8, &[0; 8]);
    for len in 1..whole.len() {
        let peer = Peer::connect(arena.socket())?;
        let file = shared(4096)?;
        peer.send_bytes(&whole[..len], &[file.as_fd()])?;
        peer.socket().shutdown(std::net::Shutdown::Write)?;
        peer.wait_for_hang_up()
            .with_context(|| format!("{len} bytes"))?;
    }
    // And closed without a word.
    for len in 0..whole.len() {
        let peer = Peer::connect(arena.socket())?;
        peer.send_bytes(&whole[..len], &[])?;
    }
    arena.survive(&["is dropped"])
}

#[test]
fn payload_lengths_that_are_wrong_cost_the_connection() -> Result<()> {
    let arena = Arena::new(&[])?;
    for len in [4097, 5000, 65_536, 1 << 31, u32::MAX] {
        let peer = Peer::connect(arena.socket())?;
        peer.send_bytes(&encode(message::SET_FEATURES, VERSION, len, &[0; 8]), &[])?;
        peer.wait_for_hang_up()
            .with_context(|| format!("a length of {len}"))?;
    }
    for request in REQUESTS {
        for len in [1, 3, 7, 9, 41, 4096] {
            let peer = negotiated(&arena)?;
            peer.send(request, VERSION | NEED_REPLY, &vec![0xff; len], &[])?;
            // It answers with an error, or hangs up. What it must not do is keep the peer waiting.
            let answer = peer.receive();
            ensure!(
                !matches!(answer, Err(Error::Late { .. })),
                "request {request} with {len} bytes is not answered"
            );
        }
    }
    arena.survive(&["is dropped"])
}

#[test]
fn flags_that_are_wrong_cost_the_connection() -> Result<()> {
    let arena = Arena::new(&[])?;
    for flags in [0, 2, 3, REPLY | VERSION, u32::MAX, 0x10 | VERSION] {
        let peer = Peer::connect(arena.socket())?;
        peer.send(message::GET_FEATURES, flags, &[], &[])?;
        peer.socket().shutdown(std::net::Shutdown::Write)?;
        peer.wait_for_hang_up()
            .with_context(|| format!("flags {flags:#x}"))?;
    }
    arena.survive(&[])
}

#[test]
fn descriptors_in_wrong_numbers_are_refused_and_closed() -> Result<()> {
    let arena = Arena::new(&[])?;
    let file = shared(4096)?;
    let table = memory_table(&[[GUEST_BASE, 4096, USER_BASE, 0]]);
    for count in [0, 2, 3, 31, 32, 33, 64] {
        let peer = negotiated(&arena)?;
        let descriptors = vec![file.as_fd(); count];
        let result = peer.tell(message::SET_MEM_TABLE, &table, &descriptors);
        assert_refused(&format!("a memory table with {count} descriptors"), result)?;
    }
    for request in [
        message::SET_VRING_KICK,
        message::SET_VRING_CALL,
        message::SET_VRING_ERR,
    ] {
        for count in [0, 2, 32] {
            let peer = negotiated(&arena)?;
            let result = peer.tell(request, &words(&[0]), &vec![file.as_fd(); count]);
            assert_refused(
                &format!("request {request} with {count} descriptors"),
                result,
            )?;
        }
    }
    // Messages that have none.
    for request in [
        message::GET_FEATURES,
        message::SET_OWNER,
        message::GET_QUEUE_NUM,
    ] {
        let peer = Peer::connect(arena.socket())?;
        peer.send(request, VERSION, &[], &[file.as_fd(), file.as_fd()])?;
        peer.socket().shutdown(std::net::Shutdown::Write)?;
        peer.wait_for_hang_up()
            .with_context(|| format!("request {request} with descriptors"))?;
    }
    arena.survive(&[])
}

#[test]
fn memory_tables_that_cannot_be_are_refused() -> Result<()> {
    let arena = Arena::new(&[])?;
    let page = 4096;
    let cases: [(&str, &[[u64; 4]]); 11] = [
        ("no region", &[]),
        ("an empty region", &[[GUEST_BASE, 0, USER_BASE, 0]]),
        (
            "a region longer than its file",
            &[[GUEST_BASE, 17 * page, USER_BASE, 0]],
        ),
        (
            "a region that begins behind its file's end",
            &[[GUEST_BASE, page, USER_BASE, 16 * page]],
        ),
        (
            "a region of 2^64 - 1 bytes",
            &[[GUEST_BASE, u64::MAX, USER_BASE, 0]],
        ),
        (
            "a region that wraps around",
            &[[u64::MAX - 4095, 2 * page, USER_BASE, 0]],
        ),
        (
            "user addresses that wrap around",
            &[[GUEST_BASE, 2 * page, u64::MAX - 4095, 0]],
        ),
        (
            "an offset that is no page",
            &[[GUEST_BASE, page, USER_BASE, 1]],
        ),
        (
            "an offset near 2^64",
            &[[GUEST_BASE, page, USER_BASE, u64::MAX - 4095]],
        ),
        (
            "regions that overlap",
            &[
                [GUEST_BASE, 2 * page, USER_BASE, 0],
                [GUEST_BASE + page, 2 * page, USER_BASE + 0x10_0000, 0],
            ],
        ),
        (
            "the same region twice",
            &[
                [GUEST_BASE, page, USER_BASE, 0],
                [GUEST_BASE, page, USER_BASE, 0],
            ],
        ),
    ];
    for (case, regions) in cases {
        let peer = negotiated(&arena)?;
        let file = shared(16 * page)?;
        let result = peer.tell(
            message::SET_MEM_TABLE,
            &memory_table(regions),
            &vec![file.as_fd(); regions.len()],
        );
        assert_refused(case, result)?;
    }
    // More regions counted than are there, and more than there may be.
    for count in [2u64, 33, 1 << 20, u64::from(u32::MAX)] {
        let peer = negotiated(&arena)?;
        let file = shared(16 * page)?;
        let mut table = memory_table(&[[GUEST_BASE, page, USER_BASE, 0]]);
        table[..8].copy_from_slice(&count.to_le_bytes());
        let result = peer.tell(message::SET_MEM_TABLE, &table, &[file.as_fd()]);
        assert_refused(&format!("{count} regions in one"), result)?;
    }
    arena.survive(&[])
}

#[test]
fn memory_that_is_no_memory_is_refused() -> Result<()> {
    let arena = Arena::new(&[])?;
    let table = memory_table(&[[GUEST_BASE, 4096, USER_BASE, 0]]);
    let (pipe, _far) = pipe_with(PipeFlags::CLOEXEC)?;
    let (socket, _far) = UnixStream::pair()?;
    let dir = File::open(arena.share())?;
    let read_only = tempfile::NamedTempFile::new()?;
    read_only.as_file().set_len(4096)?;
    let read_only = File::open(read_only.path())?;
    for (case, file) in [
        ("a pipe", pipe.as_fd()),
        ("a socket", socket.as_fd()),
        ("a directory", dir.as_fd()),
        ("a file that cannot be written", read_only.as_fd()),
    ] {
        let peer = negotiated(&arena)?;
        assert_refused(case, peer.tell(message::SET_MEM_TABLE, &table, &[file]))?;
    }
    arena.survive(&[])
}

#[test]
fn ring_setups_that_cannot_be_are_refused() -> Result<()> {
    let arena = Arena::new(&[])?;
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
        let peer = negotiated(&arena)?;
        peer.tell(
            message::SET_MEM_TABLE,
            &memory_table(&[memory.region()]),
            &[memory.file()],
        )?;
        let refused = peer.tell(request, &payload, &[]);
        if request == message::SET_VRING_NUM && refused.is_ok() {
            // A size that is no power of two is refused with the ring's addresses.
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
            let peer = negotiated(&arena)?;
            let result = peer.tell(request, &words(&[ring]), &[event.as_fd()]);
            assert_refused(&format!("request {request} of ring {ring}"), result)?;
        }
    }
    arena.survive(&[])
}

#[test]
fn messages_before_their_time_are_refused_or_do_nothing() -> Result<()> {
    let arena = Arena::new(&[])?;
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
    for request in REQUESTS {
        let peer = Peer::connect(arena.socket())?;
        let with_descriptor = [
            message::SET_VRING_KICK,
            message::SET_VRING_CALL,
            message::SET_VRING_ERR,
        ];
        let descriptors = [event.as_fd()];
        let descriptors = if with_descriptor.contains(&request) {
            &descriptors[..]
        } else {
            &[]
        };
        let _ = peer.send(request, VERSION, &[0; 8], descriptors);
        let _ = peer.send(message::SET_VRING_ENABLE, VERSION, &ring_state(0, 1), &[]);
        let _ = peer.send(message::GET_VRING_BASE, VERSION, &ring_state(0, 0), &[]);
        let _ = peer.send(message::RESET_DEVICE, VERSION, &[], &[]);
        peer.socket().shutdown(std::net::Shutdown::Write).ok();
        peer.wait_for_hang_up()
            .with_context(|| format!("request {request}"))?;
    }
    arena.survive(&[])
}

/// A guest whose ring 1 has been given `kick` or `call` for a descriptor; ring 2 must go on.
fn with_odd_descriptor(arena: &Arena, request: u32, descriptor: OwnedFd) -> Result<()> {
    let setup = Setup {
        request_queues: 2,
        ..Setup::default()
    };
    let mut guest = arena.guest(&setup)?;
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
            // Whether ring 1 was served at all depends on the descriptor; nobody has to be told.
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
    let mut arena = Arena::new(&[])?;
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
        // Both ends share the flag: this one blocks whoever does not take care.
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
            OwnedFd::from(File::open(arena.share())?),
            shared(4096)?,
        ] {
            with_odd_descriptor(&arena, request, descriptor)?;
        }
    }
    arena.neighbour_goes_on()?;
    arena.survive(&[])
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
    // utime and stime are fields 14 and 15, and the third is the first here.
    let field =
        |index: usize| -> Result<u64> { Ok(fields.get(index).context("a field")?.parse()?) };
    Ok(field(11)? + field(12)?)
}

#[test]
fn a_kick_descriptor_that_is_always_ready_does_not_burn_a_processor() -> Result<()> {
    let arena = Arena::quiet(&[])?;
    let mut guests = Vec::new();
    let (closed, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    drop(writer);
    let (socket, far) = UnixStream::pair()?;
    drop(far);
    for descriptor in [closed, OwnedFd::from(socket)] {
        let guest = arena.guest(&Setup::default())?;
        guest.stop_ring(1)?;
        // Refused is as good as served without burning.
        let _ = gangplank_tests::driver::start_ring(&guest.peer, &guest.memory, &guest.rings[1]);
        let _ = guest
            .peer
            .tell(message::SET_VRING_KICK, &words(&[1]), &[descriptor.as_fd()]);
        let _ = guest
            .peer
            .tell(message::SET_VRING_ENABLE, &ring_state(1, 1), &[]);
        guests.push(guest);
    }
    let before = ticks(arena.serving())?;
    std::thread::sleep(Duration::from_secs(1));
    let used = ticks(arena.serving())? - before;
    ensure!(
        used < 30,
        "{used} ticks of processor time in a second of doing nothing"
    );
    drop(guests);
    arena.survive(&[])
}

#[test]
fn memory_that_is_cut_off_in_use_costs_the_guest_its_rings() -> Result<()> {
    let arena = Arena::new(&[])?;
    let setup = Setup {
        request_queues: 2,
        ..Setup::default()
    };
    // The far half of memory: rings and buffers of the driver lie in the near one.
    let half = setup.memory / 2;
    for case in ["request", "reply", "rings"] {
        let mut guest = arena.guest(&setup)?;
        let (_, bytes) = guest.encode(NodeId::ROOT, gangplank_fuse::Operation::Statfs)?;
        let near = guest.memory.allocate(4096)?;
        guest.memory.write(near, &bytes);
        let len = u32::try_from(bytes.len())?;
        let far = GUEST_BASE + half + 0x10_000;
        let (request, reply) = match case {
            "request" => (far, near + 2048),
            _ => (near, far),
        };
        let cut = if case == "rings" { 0 } else { half };
        let table = [
            Descriptor {
                address: request,
                len,
                flags: 1,
                next: 1,
            },
            Descriptor {
                address: reply,
                len: 512,
                flags: 2,
                next: 0,
            },
        ];
        for (index, descriptor) in (0..).zip(table) {
            guest.rings[1].put_descriptor(&guest.memory, index, descriptor);
        }
        guest.rings[1].publish(&guest.memory, 0);
        guest.memory.truncate(cut)?;
        guest.rings[1].kick_anyway()?;
        guest.rings[1]
            .wait_for_error(LIMIT)
            .with_context(|| format!("{case}\n{}", arena.log()))?;
    }
    arena.survive(&["truncated"])
}

#[test]
fn memory_that_is_taken_away_under_running_rings_stops_them() -> Result<()> {
    let arena = Arena::new(&[])?;
    for by_slot in [false, true] {
        let mut guest = arena.guest(&Setup::default())?;
        let taken = if by_slot {
            let region = words(&[&[0][..], &guest.memory.region()].concat());
            guest.peer.tell(message::REM_MEM_REG, &region, &[])
        } else {
            let elsewhere = shared(1 << 20)?;
            let table = memory_table(&[[0x10_0000_0000, 1 << 20, 0x7000_0000_0000, 0]]);
            guest
                .peer
                .tell(message::SET_MEM_TABLE, &table, &[elsewhere.as_fd()])
        };
        taken.with_context(|| format!("by slot: {by_slot}"))?;
        guest.rings[1].publish(&guest.memory, 0);
        guest.rings[1].kick_anyway()?;
        guest.rings[1]
            .wait_for_error(LIMIT)
            .with_context(|| format!("by slot: {by_slot}\n{}", arena.log()))?;
    }
    arena.survive(&["a ring is stopped"])
}

/// The rings' threads must not get at a memory table before it has been looked at: this one's file has no pages.
#[test]
fn a_table_over_an_empty_file_hurts_nobody_while_its_ring_is_kicked() -> Result<()> {
    let arena = Arena::new(&[])?;
    for round in 0..30 {
        let guest = arena
            .guest(&Setup::default())
            .with_context(|| format!("round {round}"))?;
        let kick = guest.rings[1].kick_descriptor().try_clone_to_owned()?;
        let kicking = AtomicBool::new(true);
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                while kicking.load(Ordering::Relaxed) {
                    // The daemon may have closed its end already.
                    let _ = rustix::io::write(&kick, &1u64.to_ne_bytes());
                }
            });
            let empty = shared(0)?;
            let table = memory_table(&[guest.memory.region()]);
            let answer = guest
                .peer
                .tell(message::SET_MEM_TABLE, &table, &[empty.as_fd()]);
            kicking.store(false, Ordering::Relaxed);
            anyhow::Ok(answer)
        })?;
        assert_refused("a table over an empty file", answer)?;
    }
    arena.survive(&["is dropped"])
}

#[test]
fn a_frontend_that_never_reads_its_answers_blocks_nobody_else() -> Result<()> {
    let mut arena = Arena::new(&[])?;
    let peer = Peer::connect(arena.socket())?;
    peer.socket().set_nonblocking(true)?;
    let question = encode(message::GET_FEATURES, VERSION, 0, &[]);
    let mut sent = 0u32;
    // Until the daemon takes no more, because it cannot get rid of the answers.
    let full = loop {
        match (&mut peer.socket()).write(&question) {
            Ok(_) => sent += 1,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
                if (&mut peer.socket()).write(&question).is_err() {
                    break true;
                }
            }
            Err(_) => break false,
        }
        ensure!(sent < 1_000_000, "the daemon takes a million questions");
    };
    ensure!(full || sent > 0);
    arena.neighbour_goes_on()?;
    drop(peer);
    arena.survive(&[])
}

#[test]
fn connections_by_the_hundred_leave_nothing_behind() -> Result<()> {
    let mut arena = Arena::new(&[])?;
    for round in 0..200 {
        let peer = Peer::connect(arena.socket())?;
        if round % 2 == 0 {
            peer.ask_u64(message::GET_FEATURES)?;
        }
    }
    arena.neighbour_goes_on()?;
    let idle: Vec<Peer> = (0..50)
        .map(|_| Peer::connect(arena.socket()))
        .collect::<Result<_, _>>()?;
    for peer in &idle {
        peer.ask_u64(message::GET_FEATURES)?;
    }
    arena.neighbour_goes_on()?;
    drop(idle);
    arena.survive(&[])
}

#[test]
fn a_guest_without_descriptors_left_is_not_served_and_the_next_is() -> Result<()> {
    let arena = Arena::quiet(&["--rlimit-nofile=512"])?;
    let mut peers = Vec::new();
    let mut refused = 0;
    for _ in 0..200 {
        let Ok(peer) = Peer::connect(arena.socket()) else {
            break;
        };
        // Shorter than the usual deadline: a daemon without descriptors does not get to accepting.
        peer.socket()
            .set_read_timeout(Some(Duration::from_millis(200)))?;
        match peer.ask_u64(message::GET_FEATURES) {
            Ok(_) => peers.push(peer),
            Err(_) => refused += 1,
        }
        if refused > 3 {
            break;
        }
    }
    ensure!(
        refused > 0,
        "200 guests have found descriptors although 512 are the limit"
    );
    drop(peers);
    // The next one is served.
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        let served = Driver::mount(arena.socket(), &Setup::default())
            .and_then(|mut guest| guest.getattr(NodeId::ROOT, None));
        match served {
            Ok(_) => break,
            Err(error) => ensure!(
                std::time::Instant::now() < deadline,
                "{error}: {}",
                arena.log()
            ),
        }
    }
    arena.survive(&[])
}
