//! A frontend that behaves like Cloud Hypervisor, when its daemon has died or its worker has.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{GetattrIn, NodeId, Operation};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::fixture::{Fixture, wait_for_log};
use gangplank_tests::driver::{Driver, Error, NodeAndFile, Ticket};
use rustix::fs::{FlockOperation, MemfdFlags, OFlags, fcntl_lock, ftruncate, memfd_create};
use rustix::io::Errno;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

use super::device::{Device, boot};
use super::{MANY, kill_worker, wait_for_next};

/// `F_WRLCK`.
const WRITE_LOCK: u32 = 1;

/// Submits requests for a lock that another program holds, which wait until their daemon ends.
fn wait_for_lock(guest: &mut Driver<Device>, file: NodeAndFile) -> Result<Vec<Ticket>> {
    let tickets = (1..=WAITING)
        .map(|owner| guest.submit_setlkw(1, file, owner, WRITE_LOCK))
        .collect::<Result<Vec<_>, _>>()?;
    // The ring has served all that came before.
    guest.getattr(NodeId::ROOT, None)?;
    for ticket in &tickets {
        ensure!(!guest.is_finished(ticket)?, "a request does not wait");
    }
    Ok(tickets)
}

/// Requests that wait at a time.
const WAITING: u64 = 5;

/// How long the daemon has to see that a lock is free.
const GRANTED: Duration = Duration::from_secs(20);

#[test]
fn the_guest_goes_on_when_its_worker_is_killed() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY, "--locks=host"])?;
    let mut guest = boot(fixture.socket())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    let held = File::options()
        .write(true)
        .open(fixture.share().join("file"))?;
    fcntl_lock(&held, FlockOperation::LockExclusive)?;
    let mut tickets = wait_for_lock(&mut guest, file)?;
    for round in 0..5 {
        let old = kill_worker(&fixture)?;
        guest
            .write(file, 0, b"content")
            .with_context(|| fixture.log())?;
        wait_for_next(&fixture, old)?;
        wait_for_log(&fixture.daemon, &format!("death {}", round + 1))?;
    }
    for ticket in &tickets {
        ensure!(!guest.is_finished(ticket)?, "a request is lost");
    }
    drop(held);
    // One of them gets the lock: the next worker begins their waits in any order. All owners are
    // the guest's, and exclude each other.
    let mut granted = Vec::new();
    let deadline = Instant::now() + GRANTED;
    while granted.is_empty() {
        ensure!(
            Instant::now() < deadline,
            "nobody gets the lock: {}",
            fixture.log()
        );
        thread::sleep(Duration::from_millis(5));
        guest.getattr(NodeId::ROOT, None)?;
        for ticket in std::mem::take(&mut tickets) {
            match guest.is_finished(&ticket)? {
                true => granted.push(ticket),
                false => tickets.push(ticket),
            }
        }
    }
    ensure!(granted.len() == 1, "{} owners have the lock", granted.len());
    for ticket in granted {
        guest.finish(ticket).with_context(|| fixture.log())?;
    }
    let log = fixture.log();
    ensure!(!log.contains("was served before"), "{log}");
    Ok(())
}

#[test]
fn what_a_killed_daemon_left_is_answered_with_an_error_by_the_next() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let options = Options::new(dir.path()).arguments(&["--locks=host", "--keep-session=0"]);
    let mut daemon = Daemon::start(&options)?;
    let socket = daemon.socket().to_owned();
    let mut guest = boot(&socket)?;
    fs::write(dir.path().join("file"), "content")?;
    let held = File::options().write(true).open(dir.path().join("file"))?;
    fcntl_lock(&held, FlockOperation::LockExclusive)?;
    for round in 0..3 {
        let node = NodeId::new(guest.lookup(NodeId::ROOT, c"file")?.nodeid);
        let file = NodeAndFile {
            node,
            file: guest.open(node, OFlags::RDWR)?,
        };
        let mut tickets = wait_for_lock(&mut guest, file)?;
        if round < 2 {
            daemon.replace(&options)?;
        } else {
            // Only the connection is lost, and the session is not kept.
            guest.peer.hang_up();
            wait_for_log(&daemon, "has gone")?;
        }
        // Nobody takes it until the device has reconnected.
        let getattr = Operation::Getattr(GetattrIn::default());
        tickets.push(guest.submit(1, node, getattr, &[], 256)?);
        let Driver {
            peer,
            memory,
            rings,
            ..
        } = &mut guest;
        peer.reconnect(&socket, memory, rings)
            .with_context(|| daemon.log())?;
        for ticket in tickets {
            let answer = guest.finish(ticket);
            let is_failed = match &answer {
                Err(Error::Errno(Errno::IO)) => true,
                // A daemon whose frontend hangs up ends what waits.
                Err(Error::Errno(Errno::INTR)) => round == 2,
                _ => false,
            };
            ensure!(is_failed, "round {round}: {answer:?}: {}", daemon.log());
        }
        wait_for_log(&daemon, "was served before it reconnected")?;
        // Mounting again.
        guest.init()?;
    }
    Ok(())
}

#[test]
fn memory_that_cannot_keep_requests_is_refused() -> Result<()> {
    let fixture = Fixture::new(&[])?;
    let inflight = |rings, ring_size| VhostUserInflight::new(1 << 20, 0, rings, ring_size);
    let unsealed = memfd_create("unsealed", MemfdFlags::CLOEXEC)?;
    ftruncate(&unsealed, 1 << 20)?;
    for (rings, ring_size) in [(10, 1), (1, 2048), (u16::MAX, u16::MAX)] {
        let mut connection = Device::connect(fixture.socket())?;
        let got = connection.get_inflight_fd(&inflight(rings, ring_size));
        ensure!(got.is_err(), "{rings} rings of {ring_size}");
        let mut connection = Device::connect(fixture.socket())?;
        let given = inflight(rings, ring_size);
        ensure!(
            connection
                .set_inflight_fd(&given, unsealed.as_raw_fd())
                .is_err()
        );
    }
    let mut connection = Device::connect(fixture.socket())?;
    let given = inflight(1, 64);
    ensure!(
        connection
            .set_inflight_fd(&given, unsealed.as_raw_fd())
            .is_err()
    );
    let mut connection = Device::connect(fixture.socket())?;
    let (given, file) = connection.get_inflight_fd(&inflight(2, 64))?;
    let beyond = VhostUserInflight {
        mmap_offset: given.mmap_size.next_multiple_of(4096),
        ..given
    };
    ensure!(
        connection
            .set_inflight_fd(&beyond, file.as_raw_fd())
            .is_err()
    );
    fixture.survive(&["sealed", "too short", "rings of 65535"])
}
