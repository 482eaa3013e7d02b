//! Guests and tunnels that do not keep to the rules, without a guest's kernel.

use std::ffi::CString;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_driver::{Driver, InitOptions, Options};
use gangplank_dvk::abi::{M7, Message};
use gangplank_dvk::tunnel::wire::{Call, MAX_BYTES, MAX_DATA, MAX_PAGES, MAX_REPLY};
use gangplank_fuse::{InHeader, MkdirIn, NodeId, Opcode, Operation};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk_tunnel::Tunnel;
use gangplank_tests::runner::Runner;
use tempfile::TempDir;
use zerocopy::IntoBytes;

use super::peer::{Peer, error_of, request};

const TESTS: &[(&str, Test)] = &[
    (
        "hostile::a_guests_impossible_lengths_end_its_tunnel_alone",
        a_guests_impossible_lengths_end_its_tunnel_alone,
    ),
    (
        "hostile::a_tunnels_impossible_lengths_end_its_session_alone",
        a_tunnels_impossible_lengths_end_its_session_alone,
    ),
    (
        "hostile::a_request_that_is_sent_again_is_carried_out_once",
        a_request_that_is_sent_again_is_carried_out_once,
    ),
    (
        "hostile::init_offers_no_more_than_a_copy_carries",
        init_offers_no_more_than_a_copy_carries,
    ),
];

type Test = fn(&Fixture) -> Result<()>;

const LIMIT: Duration = Duration::from_secs(20);

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
            let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
            let fixture = Fixture {
                tunnel: Tunnel::at_switch(daemon.socket())?,
                _daemon: daemon,
                share,
            };
            test(&fixture).map_err(|error| error.context(fixture.tunnel.log()))
        });
    }
}

/// A guest's request with more room than INIT allows, or none at all: its device ends, and the next
/// guest is served.
fn a_guests_impossible_lengths_end_its_tunnel_alone(fixture: &Fixture) -> Result<()> {
    let socket = fixture.tunnel.socket();
    for (readable, writable) in [
        (44, MAX_REPLY + 1),
        (MAX_BYTES + 1, 16),
        (44, u32::MAX / 64),
    ] {
        let driver = Driver::connect(&socket, &Options::default())?;
        let request = driver.buffer(usize::try_from(readable)?)?;
        let header = InHeader {
            len: readable,
            opcode: Opcode::Statfs as u32,
            unique: 2,
            ..InHeader::default()
        };
        request.bytes().copy_from(header.as_bytes());
        let room = driver.buffer(usize::try_from(writable)?)?;
        let sent = driver.submit_raw(1, (request, readable), Some((room, writable)), LIMIT)?;
        let ended = sent.context("the ring is full")?.wait(LIMIT);
        ensure!(
            matches!(ended, Err(ref error) if error.is_fatal()),
            "{readable}, {writable}: {ended:?}"
        );
        let driver = Driver::connect(&socket, &Options::default())?;
        let session = driver.session(&InitOptions::default())?;
        session.statfs(NodeId::ROOT)?;
    }
    ensure!(
        fixture.tunnel.log().contains("it sends a request of"),
        "the log does not say why"
    );
    Ok(())
}

/// A tunnel's message with impossible lengths ends its session. Another one goes on.
fn a_tunnels_impossible_lengths_end_its_session_alone(fixture: &Fixture) -> Result<()> {
    let good = Peer::new(&fixture.tunnel, 140)?;
    let hostile = Peer::new(&fixture.tunnel, 150)?;
    let session = hostile.session.cast_signed();
    let most = MAX_BYTES.cast_signed();
    for (slot, readable, writable, address) in [
        (1, most + 1, 0, 0),
        (1, -1, 0, 0),
        (1, 0, 0, 0),
        (1, 40, MAX_REPLY + 1, 0),
        (1, 40, u32::MAX, 0),
        (1, 40, 16, u32::MAX - 20),
        (64, 40, 16, 0),
        (-1, 40, 16, 0),
    ] {
        let arm = M7 {
            i1: session,
            i2: slot,
            i3: 1,
            i4: readable,
            p1: writable,
            p2: address,
        };
        let answer = hostile.send(&Message::new(0x7102, &arm))?;
        ensure!(answer.kind < 0, "{arm:?}: {answer:?}");
    }
    let ping = Call::Ping {
        session: hostile.session,
    };
    ensure!(
        hostile.send(&ping.encode())?.kind < 0,
        "the hostile session goes on"
    );
    good.init()?;
    fixture
        .tunnel
        .wait_for_server("guest behind endpoint 140", true)?;
    fixture
        .tunnel
        .wait_for_server("guest behind endpoint 150", false)
}

/// The same slot and number are the same request: the second MKDIR gets the reply of the first, and
/// a new number is a new request.
fn a_request_that_is_sent_again_is_carried_out_once(fixture: &Fixture) -> Result<()> {
    let peer = Peer::new(&fixture.tunnel, 140)?;
    peer.init()?;
    let name = CString::new("made")?;
    let operation = Operation::Mkdir {
        args: MkdirIn {
            mode: 0o755,
            umask: 0,
        },
        name: &name,
    };
    let request = request(4, NodeId::ROOT, operation)?;
    let first = peer.ask(2, 1, &request, 200)?;
    let again = peer.ask(2, 1, &request, 200)?;
    let anew = peer.ask(2, 2, &request, 200)?;
    ensure!(first == again, "another reply: {first:?} and {again:?}");
    ensure!(
        error_of(&first)? == 0 && error_of(&anew)? == libc::EEXIST,
        "{first:?}, {anew:?}"
    );
    ensure!(
        fixture.share.path().join("made").is_dir(),
        "it is not there"
    );
    Ok(())
}

/// A guest is told no more than [`MAX_DATA`] bytes of a write, and [`MAX_PAGES`] pages.
fn init_offers_no_more_than_a_copy_carries(fixture: &Fixture) -> Result<()> {
    let peer = Peer::new(&fixture.tunnel, 140)?;
    let init = peer.init()?;
    ensure!(
        init.max_write <= MAX_DATA && init.max_pages <= MAX_PAGES,
        "{init:?}"
    );
    Ok(())
}
