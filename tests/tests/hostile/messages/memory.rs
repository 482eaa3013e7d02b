//! Memory tables that are impossible, and memory that disappears while rings use it.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::memory::{GUEST_BASE, USER_BASE};
use gangplank_tests::driver::ring::Descriptor;
use gangplank_tests::driver::vhost_user::{memory_table, message, words};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{LIMIT, assert_refused, negotiated, shared};

#[test]
fn memory_tables_that_cannot_be_are_refused() -> Result<()> {
    let fixture = Fixture::new(&[])?;
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
        let peer = negotiated(&fixture)?;
        let file = shared(16 * page)?;
        let result = peer.tell(
            message::SET_MEM_TABLE,
            &memory_table(regions),
            &vec![file.as_fd(); regions.len()],
        );
        assert_refused(case, result)?;
    }
    // A count of more regions than the payload has, and of more than are permitted.
    for count in [2u64, 33, 1 << 20, u64::from(u32::MAX)] {
        let peer = negotiated(&fixture)?;
        let file = shared(16 * page)?;
        let mut table = memory_table(&[[GUEST_BASE, page, USER_BASE, 0]]);
        table[..8].copy_from_slice(&count.to_le_bytes());
        let result = peer.tell(message::SET_MEM_TABLE, &table, &[file.as_fd()]);
        assert_refused(&format!("{count} regions in one"), result)?;
    }
    fixture.survive(&[])
}

#[test]
fn memory_that_is_no_memory_is_refused() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let table = memory_table(&[[GUEST_BASE, 4096, USER_BASE, 0]]);
    let (pipe, _far) = pipe_with(PipeFlags::CLOEXEC)?;
    let (socket, _far) = UnixStream::pair()?;
    let dir = File::open(fixture.share())?;
    let read_only = tempfile::NamedTempFile::new()?;
    read_only.as_file().set_len(4096)?;
    let read_only = File::open(read_only.path())?;
    for (case, file) in [
        ("a pipe", pipe.as_fd()),
        ("a socket", socket.as_fd()),
        ("a directory", dir.as_fd()),
        ("a file that cannot be written", read_only.as_fd()),
    ] {
        let peer = negotiated(&fixture)?;
        assert_refused(case, peer.tell(message::SET_MEM_TABLE, &table, &[file]))?;
    }
    fixture.survive(&[])
}

#[test]
fn memory_that_is_cut_off_in_use_costs_the_guest_its_rings() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let setup = Setup {
        request_queues: 2,
        ..Setup::default()
    };
    // The upper half of memory: the driver's rings and buffers are in the lower half.
    let half = setup.memory / 2;
    for case in ["request", "reply", "rings"] {
        let mut guest = fixture.guest(&setup)?;
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
            .with_context(|| format!("{case}\n{}", fixture.log()))?;
    }
    fixture.survive(&["truncated"])
}

#[test]
fn memory_that_is_taken_away_under_running_rings_stops_them() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    for by_slot in [false, true] {
        let mut guest = fixture.guest(&Setup::default())?;
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
            .with_context(|| format!("by slot: {by_slot}\n{}", fixture.log()))?;
    }
    fixture.survive(&["a ring is stopped"])
}

/// The rings' threads must not use a memory table before the daemon has checked it. The file of
/// this one has no pages.
#[test]
fn a_table_over_an_empty_file_hurts_nobody_while_its_ring_is_kicked() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    for round in 0..30 {
        let guest = fixture
            .guest(&Setup::default())
            .with_context(|| format!("round {round}"))?;
        let kick = guest.rings[1].kick_descriptor().try_clone_to_owned()?;
        let kicking = AtomicBool::new(true);
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                while kicking.load(Ordering::Relaxed) {
                    // The daemon may have closed the connection already.
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
    fixture.survive(&["is dropped"])
}
