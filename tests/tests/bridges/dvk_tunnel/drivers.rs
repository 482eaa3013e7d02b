//! A guest in the form of a driver: long reads, stopped rings, locks that are given up.

use std::ffi::CStr;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_dvk::tunnel::wire::{MAX_PAGES, MAX_REPLY};
use gangplank_fuse::{
    FileLock, GetattrIn, LkIn, NodeId, OpenIn, Operation, OutHeader, ReadIn, reply,
};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::dvk_tunnel::Tunnel;
use gangplank_tests::runner::Runner;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::Signal;
use tempfile::TempDir;

use super::peer::{Peer, error_of, request};

const TESTS: &[(&str, Test)] = &[
    (
        "drivers::reads_of_as_many_pages_of_64_kib_as_init_allows_are_whole",
        reads_of_as_many_pages_of_64_kib_as_init_allows_are_whole,
    ),
    (
        "drivers::a_ring_is_given_back_while_the_server_is_silent",
        a_ring_is_given_back_while_the_server_is_silent,
    ),
    (
        "drivers::a_long_read_that_is_sent_again_is_whole",
        a_long_read_that_is_sent_again_is_whole,
    ),
    (
        "drivers::a_lock_whose_wait_the_tunnel_gives_up_is_not_granted",
        a_lock_whose_wait_the_tunnel_gives_up_is_not_granted,
    ),
];

type Test = fn(&Fixture) -> Result<()>;

/// Limit for requests.
const LIMIT: Duration = Duration::from_secs(60);

/// Time for what the daemon does without an answer.
const MOMENT: Duration = Duration::from_millis(300);

/// `F_WRLCK` and `F_UNLCK` (asm-generic/fcntl.h).
const WRITE_LOCK: u32 = 1;
const UNLOCK: u32 = 2;

/// A tunnel at a switch without a guest, and its daemon.
struct Fixture {
    tunnel: Tunnel,
    _daemon: Daemon,
    share: TempDir,
}

pub(crate) fn run(runner: &mut Runner) {
    for (name, test) in TESTS {
        runner.run(name, || {
            let share = tempfile::Builder::new()
                .prefix("gangplank-share-")
                .tempdir()?;
            let options = daemon::Options::new(share.path()).arguments(&["--locks=host"]);
            let daemon = Daemon::start(&options)?;
            let fixture = Fixture {
                tunnel: Tunnel::at_switch(daemon.socket())?,
                _daemon: daemon,
                share,
            };
            test(&fixture).map_err(|error| error.context(fixture.tunnel.log()))
        });
    }
}

/// A guest with pages of 64 KiB reads 16 MiB at once: INIT bounds pages, and not bytes. More such
/// reads than the server has memory for are whole, too.
fn reads_of_as_many_pages_of_64_kib_as_init_allows_are_whole(fixture: &Fixture) -> Result<()> {
    const READS: usize = 14;
    let setup = Setup {
        memory: 512 << 20,
        ..Setup::default()
    };
    let mut guest = Driver::connect(&fixture.tunnel.socket(), &setup)?;
    let init = guest.init()?;
    ensure!(init.max_pages == MAX_PAGES, "{init:?}");
    let len = u32::from(init.max_pages) << 16;
    let mut state = 1_u32;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()
    })
    .take(usize::try_from(len / 4)?)
    .flatten()
    .collect();
    fs::write(fixture.share.path().join("long"), &content)?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"long")?.nodeid);
    let file = guest.open(node, OFlags::RDONLY)?;
    let read = Operation::Read(ReadIn {
        fh: file.get(),
        size: len,
        ..ReadIn::default()
    });
    let room = usize::try_from(len)?;
    ensure!(
        usize::try_from(MAX_REPLY)? >= room + size_of::<OutHeader>(),
        "{room} bytes are too many for a reply"
    );
    let tickets = (0..READS).map(|_| guest.submit(1, node, read, &[], room));
    let tickets = tickets.collect::<Result<Vec<_>, _>>()?;
    for ticket in tickets {
        let bytes = guest.finish_within(ticket, LIMIT)?;
        ensure!(bytes == content, "a read is not what the file has");
    }
    guest.release(NodeAndFile { node, file })?;
    Ok(())
}

/// The guest gets its rings back by GET_VRING_BASE after seconds, although the server has a request
/// and says nothing for longer. The request has failed, and the next one succeeds once the server
/// goes on.
fn a_ring_is_given_back_while_the_server_is_silent(fixture: &Fixture) -> Result<()> {
    let mut guest = Driver::mount(&fixture.tunnel.socket(), &Setup::default())?;
    guest.getattr(NodeId::ROOT, None)?;
    fixture.tunnel.signal_server(Signal::STOP)?;
    thread::sleep(MOMENT);
    let getattr = Operation::Getattr(GetattrIn::default());
    let ticket = guest.submit(1, NodeId::ROOT, getattr, &[], 200)?;
    thread::sleep(MOMENT);
    let begun = Instant::now();
    let stopped = guest.stop_ring(1).and_then(|_| guest.stop_ring(0));
    let took = begun.elapsed();
    fixture.tunnel.signal_server(Signal::CONT)?;
    stopped.with_context(|| format!("after {took:?}"))?;
    // Far less than the tunnel's limit of 30 s for a request.
    ensure!(
        (Duration::from_secs(4)..Duration::from_secs(20)).contains(&took),
        "it took {took:?}"
    );
    let failed = guest.finish(ticket).err().and_then(|error| error.errno());
    ensure!(failed == Some(Errno::NOTCONN), "{failed:?}");
    for ring in 0..guest.rings.len() {
        guest.start_ring(ring)?;
    }
    for _ in 0..10 {
        guest.getattr(NodeId::ROOT, None)?;
    }
    Ok(())
}

/// A file that a program at the switch has opened in a session of its own.
struct Opened {
    peer: Peer,
    node: NodeId,
    fh: u64,
    unique: u64,
}

impl Opened {
    /// Opens `name` by requests 2 and 3 in slot 1.
    fn new(tunnel: &Tunnel, name: &CStr) -> Result<Self> {
        let peer = Peer::new(tunnel, 140)?;
        peer.init()?;
        let mut opened = Self {
            peer,
            node: NodeId::ROOT,
            fh: 0,
            unique: 2,
        };
        let payload = |reply: Vec<u8>| reply.get(size_of::<OutHeader>()..).map(<[u8]>::to_vec);
        let found = opened.ask((1, 2), Operation::Lookup { name }, 200)?;
        let found = payload(found).context("no entry")?;
        opened.node = NodeId::new(reply::decode_entry(&found)?.nodeid);
        let flags = OpenIn {
            flags: OFlags::RDWR.bits(),
            open_flags: 0,
        };
        let handle = opened.ask((1, 3), Operation::Open(flags), 200)?;
        opened.fh = reply::decode_open(&payload(handle).context("no handle")?)?.fh;
        Ok(opened)
    }

    fn encode(&mut self, operation: Operation<'_>) -> Result<Vec<u8>> {
        self.unique += 2;
        request(self.unique, self.node, operation)
    }

    /// Asks until the request in this slot, of this number, has a reply.
    fn ask(&mut self, at: (u16, u32), operation: Operation<'_>, room: u32) -> Result<Vec<u8>> {
        let request = self.encode(operation)?;
        self.peer.ask(at.0, at.1, &request, room)
    }

    /// The lock of the whole file.
    fn lock(&self, owner: u64, kind: u32) -> LkIn {
        LkIn {
            fh: self.fh,
            owner,
            lk: FileLock {
                start: 0,
                end: i64::MAX.unsigned_abs(),
                r#type: kind,
                pid: 1,
            },
            ..LkIn::default()
        }
    }
}

/// The server keeps no reply of more than a megabyte: a read that is sent again is done again.
fn a_long_read_that_is_sent_again_is_whole(fixture: &Fixture) -> Result<()> {
    let content = vec![7; 3 << 20];
    fs::write(fixture.share.path().join("long"), &content)?;
    let mut file = Opened::new(&fixture.tunnel, c"long")?;
    let read = Operation::Read(ReadIn {
        fh: file.fh,
        size: 3 << 20,
        ..ReadIn::default()
    });
    for (number, round) in [(1, "first"), (1, "second"), (2, "next")] {
        let reply = file.ask((2, number), read, (3 << 20) + 16)?;
        ensure!(
            reply.get(16..) == Some(&content),
            "{round}: {} bytes",
            reply.len()
        );
    }
    Ok(())
}

/// A tunnel gives a waiting SETLKW up, which it has failed at its guest, and uses its slot for
/// another request. The lock is not granted when its holder goes: another owner gets it.
fn a_lock_whose_wait_the_tunnel_gives_up_is_not_granted(fixture: &Fixture) -> Result<()> {
    fs::write(fixture.share.path().join("locked"), "x")?;
    let mut file = Opened::new(&fixture.tunnel, c"locked")?;
    let first = file.lock(1, WRITE_LOCK);
    let taken = file.ask((1, 4), Operation::Setlk(first), 16)?;
    ensure!(error_of(&taken)? == 0, "the first owner gets no lock");
    let second = file.lock(2, WRITE_LOCK);
    let waiting = file.encode(Operation::Setlkw(second))?;
    ensure!(
        file.peer.ask_once(2, 1, &waiting, 16)?.is_none(),
        "a lock that another owner has does not wait"
    );
    let statfs = file.ask((2, 2), Operation::Statfs, 200)?;
    ensure!(error_of(&statfs)? == 0, "STATFS fails");
    // The interrupt needs a moment, and so would a lock that is granted.
    thread::sleep(MOMENT);
    let freed = file.lock(1, UNLOCK);
    let freed = file.ask((1, 5), Operation::Setlk(freed), 16)?;
    ensure!(error_of(&freed)? == 0, "the first owner does not unlock");
    thread::sleep(MOMENT);
    let third = file.lock(3, WRITE_LOCK);
    let next = file.ask((1, 6), Operation::Setlk(third), 16)?;
    let error = error_of(&next)?;
    ensure!(error == 0, "the lock was granted to nobody: errno {error}");
    Ok(())
}
