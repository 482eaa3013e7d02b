//! Frontends that do not read replies, connect without end, or use up all descriptors.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::vhost_user::{Peer, VERSION, encode, message};
use gangplank_tests::driver::{Driver, Setup};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::LIMIT;

/// Limit of the acceptor's descriptors, of which each guest takes two. Its workers have the same
/// limit, which suffices for one guest.
const ACCEPTOR_DESCRIPTORS: u64 = 120;

#[test]
fn a_frontend_that_never_reads_its_answers_blocks_nobody_else() -> Result<()> {
    let mut fixture = Fixture::new(&[])?;
    let peer = Peer::connect(fixture.socket())?;
    peer.socket().set_nonblocking(true)?;
    let question = encode(message::GET_FEATURES, VERSION, 0, &[]);
    let mut sent = 0u32;
    // Until the daemon reads no more, because it cannot send the replies.
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
    fixture.neighbour_goes_on()?;
    drop(peer);
    fixture.survive(&[])
}

#[test]
fn connections_by_the_hundred_leave_nothing_behind() -> Result<()> {
    let mut fixture = Fixture::new(&[])?;
    for round in 0..200 {
        let peer = Peer::connect(fixture.socket())?;
        if round % 2 == 0 {
            peer.ask_u64(message::GET_FEATURES)?;
        }
    }
    fixture.neighbour_goes_on()?;
    let idle: Vec<Peer> = (0..50)
        .map(|_| Peer::connect(fixture.socket()))
        .collect::<Result<_, _>>()?;
    for peer in &idle {
        peer.ask_u64(message::GET_FEATURES)?;
    }
    fixture.neighbour_goes_on()?;
    drop(idle);
    fixture.survive(&[])
}

#[test]
fn guests_beyond_the_acceptors_descriptors_wait_and_the_others_are_served() -> Result<()> {
    let mut fixture = Fixture::new(&[])?;
    let limit = Rlimit {
        current: Some(ACCEPTOR_DESCRIPTORS),
        maximum: Some(ACCEPTOR_DESCRIPTORS),
    };
    let acceptor = Pid::from_raw(fixture.acceptor()?.try_into()?).context("a process id")?;
    prlimit(Some(acceptor), Resource::Nofile, limit)?;
    let emfile = format!("(os error {})", Errno::MFILE.raw_os_error());
    let mut peers = Vec::new();
    let waiting = loop {
        ensure!(
            peers.len() < usize::try_from(ACCEPTOR_DESCRIPTORS)?,
            "{ACCEPTOR_DESCRIPTORS} guests have found as many descriptors"
        );
        let peer = Peer::connect(fixture.socket())?;
        peer.send(message::GET_FEATURES, VERSION, &[], &[])?;
        // A daemon without descriptors says so, and does not accept, or ends the connection.
        let is_out = || fixture.daemon.log().contains(&emfile);
        if !is_answered(&peer, is_out)? || peer.receive().is_err() {
            break peer;
        }
        peers.push(peer);
    };
    fixture.neighbour_goes_on()?;
    for peer in &peers {
        peer.ask_u64(message::GET_FEATURES)?;
    }
    drop((peers, waiting));
    // The next guest is served.
    let deadline = Instant::now() + LIMIT;
    loop {
        let served = Driver::mount(fixture.socket(), &Setup::default())
            .and_then(|mut guest| guest.getattr(NodeId::ROOT, None));
        match served {
            Ok(_) => break,
            Err(error) => ensure!(Instant::now() < deadline, "{error}: {}", fixture.log()),
        }
    }
    fixture.survive(&[&emfile])
}

/// Waits until a reply has come, or until the daemon is `out` of something. Returns whether a reply
/// has come.
fn is_answered(peer: &Peer, out: impl Fn() -> bool) -> Result<bool> {
    let moment = Timespec {
        tv_sec: 0,
        tv_nsec: 10_000_000,
    };
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut ready = [PollFd::new(peer.socket(), PollFlags::IN)];
        if poll(&mut ready, Some(&moment))? > 0 {
            return Ok(true);
        }
        if out() {
            return Ok(false);
        }
        ensure!(Instant::now() < deadline, "neither a reply nor a reason");
    }
}
