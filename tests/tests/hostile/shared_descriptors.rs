//! The descriptors that a frontend shares with the daemon stay as they are, and one that is full
//! blocks nobody but the guest that it belongs to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use gangplank_fuse::{GetattrIn, NodeId, Operation};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::ring::Ring;
use gangplank_tests::driver::vhost_user::{message, words};
use gangplank_tests::driver::{Driver, Setup, Ticket};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// How long the daemon may take to end with a guest that blocks it: less than it waits for requests
/// in flight.
const ENDING: Duration = Duration::from_secs(9);

/// Limit for a request to be served.
const SERVING: Duration = Duration::from_secs(60);

const GETATTR: Operation<'static> = Operation::Getattr(GetattrIn {
    getattr_flags: 0,
    dummy: 0,
    fh: 0,
});

/// Bytes of a reply to GETATTR, or more.
const ROOM: usize = 256;

fn two_queues() -> Setup {
    Setup {
        request_queues: 2,
        ..Setup::default()
    }
}

/// The descriptors that the daemon shares with a ring's driver.
fn shared(ring: &Ring) -> [BorrowedFd<'_>; 3] {
    [
        ring.kick_descriptor(),
        ring.call_descriptor(),
        ring.error_descriptor(),
    ]
}

/// Replaces the call descriptor of ring 1 by an eventfd that blocks.
fn set_call(guest: &Driver) -> Result<OwnedFd> {
    let call = eventfd(0, EventfdFlags::CLOEXEC)?;
    guest
        .peer
        .tell(message::SET_VRING_CALL, &words(&[1]), &[call.as_fd()])?;
    Ok(call)
}

/// A guest whose ring 1 has a reply that cannot be signalled: its call descriptor is full.
fn blocked(fixture: &Fixture) -> Result<(Driver, OwnedFd, Ticket)> {
    let mut guest = fixture.guest(&two_queues())?;
    let call = set_call(&guest)?;
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes())?;
    // The driver wants to be signalled.
    ensure!(
        !guest.rings[1].ask_for_notice(&guest.memory),
        "a reply to nothing"
    );
    let ticket = guest.submit(1, NodeId::ROOT, GETATTR, &[], ROOM)?;
    let start = Instant::now();
    while !guest.is_finished(&ticket)? {
        ensure!(start.elapsed() < SERVING, "the request is not served");
        thread::sleep(Duration::from_millis(1));
    }
    Ok((guest, call, ticket))
}

#[test]
fn status_flags_stay_as_the_frontend_set_them() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&Setup::default())?;
    for flags in [OFlags::empty(), OFlags::NONBLOCK] {
        guest.stop_ring(1)?;
        let before: Vec<OFlags> = shared(&guest.rings[1])
            .into_iter()
            .map(|fd| {
                fcntl_setfl(fd, flags)?;
                fcntl_getfl(fd)
            })
            .collect::<rustix::io::Result<_>>()?;
        let layout = *guest.rings[1].layout();
        ensure!(layout.index == 1, "another ring");
        guest.start_ring(1)?;
        guest.getattr(NodeId::ROOT, None)?;
        let after: Vec<OFlags> = shared(&guest.rings[1])
            .into_iter()
            .map(fcntl_getfl)
            .collect::<rustix::io::Result<_>>()?;
        ensure!(before == after, "{before:?} became {after:?}");
    }
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn a_driver_may_sleep_in_read_on_its_call_descriptor() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let call = set_call(&guest)?;
    for _ in 0..20 {
        ensure!(!guest.rings[1].ask_for_notice(&guest.memory), "a reply");
        let sleeper = call.try_clone()?;
        let sleeper = thread::spawn(move || rustix::io::read(&sleeper, &mut [0; 8]));
        // So that it sleeps by then.
        thread::sleep(Duration::from_millis(5));
        let ticket = guest.submit(1, NodeId::ROOT, GETATTR, &[], ROOM)?;
        let read = sleeper.join().map_err(|_| anyhow!("the sleeper failed"))?;
        ensure!(read == Ok(8), "the driver's read: {read:?}");
        guest.finish(ticket)?;
    }
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn a_full_call_descriptor_blocks_its_ring_alone_until_it_is_read() -> Result<()> {
    let mut fixture = Fixture::new(&[])?;
    let (mut guest, call, ticket) = blocked(&fixture)?;
    fixture.neighbour_goes_on()?;
    guest.queue = 2;
    guest
        .getattr(NodeId::ROOT, None)
        .context("the other ring")?;
    rustix::io::read(&call, &mut [0; 8])?;
    // The signal that waited for room.
    let mut count = [0; 8];
    rustix::io::read(&call, &mut count)?;
    ensure!(u64::from_ne_bytes(count) == 1, "{count:?}");
    guest.finish(ticket)?;
    guest.queue = 1;
    let next = guest.submit(1, NodeId::ROOT, GETATTR, &[], ROOM)?;
    rustix::io::read(&call, &mut count)?;
    guest.finish(next)?;
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn a_guest_with_a_full_call_descriptor_may_go() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let (guest, call, _) = blocked(&fixture)?;
    drop(guest);
    fixture.survive(&["has gone"])?;
    drop(call);
    Ok(())
}

#[test]
fn the_daemon_ends_in_time_with_a_guest_whose_call_descriptor_is_full() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let (guest, call, _) = blocked(&fixture)?;
    let Fixture { daemon, .. } = fixture;
    let start = Instant::now();
    let (status, log) = daemon.stop()?;
    ensure!(status.success(), "the daemon ended with {status}:\n{log}");
    ensure!(start.elapsed() < ENDING, "it took {:?}", start.elapsed());
    ensure!(!log.contains("still in flight"), "{log}");
    drop((guest, call));
    Ok(())
}
