//! Locks between guests (`--locks=host`): waiting, interrupting, and other requests meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::vhost_user::{message, ring_state};
use gangplank_tests::driver::{Driver, Error, NodeAndFile, Setup, Ticket};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// `F_RDLCK`, `F_WRLCK`, `F_UNLCK` as the wire has them.
const WRITE_LOCK: u32 = 1;
const UNLOCK: u32 = 2;

/// Time after which a request without a reply counts as waiting.
const SOON: Duration = Duration::from_secs(30);

const TWO_QUEUES: Setup = Setup {
    request_queues: 2,
    ring_size: 256,
    indirect: false,
    event_idx: false,
    call: gangplank_tests::driver::ring::CallKind::Event,
    memory: 16 << 20,
};

/// A guest that holds a lock on a file, and another that waits for it.
struct Waiting {
    fixture: Fixture,
    holder: Driver,
    held: NodeAndFile,
    waiter: Driver,
    wanted: NodeAndFile,
    ticket: Ticket,
}

impl Waiting {
    fn new() -> Result<Self> {
        let fixture = Fixture::new(&["--locks=host"])?;
        let mut holder = fixture.guest(&Setup::default())?;
        let held = holder.create(NodeId::ROOT, c"locked", 0o644)?;
        holder.setlk(held, 1, WRITE_LOCK)?;

        let mut waiter = fixture.guest(&TWO_QUEUES)?;
        let node = NodeId::new(waiter.lookup(NodeId::ROOT, c"locked")?.nodeid);
        let wanted = NodeAndFile {
            node,
            file: waiter.open(node, OFlags::RDWR)?,
        };
        let refused = waiter
            .setlk(wanted, 7, WRITE_LOCK)
            .err()
            .and_then(|error| error.errno());
        ensure!(
            refused == Some(Errno::AGAIN),
            "SETLK of a lock another holds: {refused:?}"
        );
        let ticket = waiter.submit_setlkw(1, wanted, 7, WRITE_LOCK)?;
        let mut all = Self {
            fixture,
            holder,
            held,
            waiter,
            wanted,
            ticket,
        };
        all.still_waits()?;
        Ok(all)
    }

    /// Fails unless the request waits and requests on its ring and on others do not.
    fn still_waits(&mut self) -> Result<()> {
        for queue in [1, 2, 1, 2] {
            self.waiter.queue = queue;
            let start = Instant::now();
            for _ in 0..20 {
                self.waiter.getattr(self.wanted.node, None)?;
            }
            self.waiter.forget(NodeId::new(u64::MAX), 1)?;
            ensure!(
                start.elapsed() < SOON,
                "requests wait behind one that waits for a lock"
            );
        }
        ensure!(
            !self.waiter.is_finished(&self.ticket)?,
            "the lock was given to two"
        );
        Ok(())
    }

    fn outcome(&mut self) -> std::result::Result<(), Error> {
        self.waiter.finish_within(self.ticket, SOON).map(|_| ())
    }
}

#[test]
fn a_lock_is_handed_on_when_it_is_given_back() -> Result<()> {
    let mut waiting = Waiting::new()?;
    waiting.holder.setlk(waiting.held, 1, UNLOCK)?;
    waiting.outcome()?;
    let refused = waiting
        .holder
        .setlk(waiting.held, 1, WRITE_LOCK)
        .err()
        .and_then(|error| error.errno());
    ensure!(
        refused == Some(Errno::AGAIN),
        "the lock is held by two: {refused:?}"
    );
    let Waiting {
        fixture,
        holder,
        waiter,
        ..
    } = waiting;
    drop((holder, waiter));
    fixture.survive(&[])
}

#[test]
fn a_lock_is_handed_on_when_its_guest_dies() -> Result<()> {
    let Waiting {
        fixture,
        holder,
        mut waiter,
        ticket,
        ..
    } = Waiting::new()?;
    drop(holder);
    waiter
        .finish_within(ticket, SOON)
        .context("the lock of a dead guest")?;
    drop(waiter);
    fixture.survive(&[])
}

#[test]
fn interrupt_ends_the_wait() -> Result<()> {
    let mut waiting = Waiting::new()?;
    let deadline = Instant::now() + SOON;
    while !waiting.waiter.is_finished(&waiting.ticket)? {
        waiting.waiter.interrupt(waiting.ticket.unique)?;
        ensure!(Instant::now() < deadline, "INTERRUPT does not end the wait");
        std::thread::sleep(Duration::from_millis(5));
    }
    let outcome = waiting.outcome().err().and_then(|error| error.errno());
    ensure!(outcome == Some(Errno::INTR), "{outcome:?}");
    // The lock was not taken meanwhile.
    waiting.holder.setlk(waiting.held, 1, UNLOCK)?;
    waiting.holder.setlk(waiting.held, 1, WRITE_LOCK)?;
    // INTERRUPT of a finished or unknown request is harmless.
    waiting.waiter.interrupt(waiting.ticket.unique)?;
    let Waiting {
        fixture,
        holder,
        waiter,
        ..
    } = waiting;
    drop((holder, waiter));
    fixture.survive(&[])
}

#[test]
fn stopping_the_ring_ends_the_wait_first() -> Result<()> {
    for by_disabling in [false, true] {
        let mut waiting = Waiting::new()?;
        let start = Instant::now();
        if by_disabling {
            waiting
                .waiter
                .peer
                .tell(message::SET_VRING_ENABLE, &ring_state(1, 0), &[])?;
        } else {
            waiting.waiter.stop_ring(1)?;
        }
        ensure!(
            start.elapsed() < SOON,
            "stopping took {:?}",
            start.elapsed()
        );
        // The reply came after the request was returned.
        ensure!(
            waiting.waiter.is_finished(&waiting.ticket)?,
            "the ring has stopped with a request out"
        );
        let outcome = waiting.outcome().err().and_then(|error| error.errno());
        ensure!(outcome == Some(Errno::INTR), "{outcome:?}");
        let Waiting {
            fixture,
            holder,
            waiter,
            ..
        } = waiting;
        drop((holder, waiter));
        fixture.survive(&[])?;
    }
    Ok(())
}

#[test]
fn a_guest_that_waits_may_go() -> Result<()> {
    let Waiting {
        fixture,
        mut holder,
        held,
        waiter,
        ..
    } = Waiting::new()?;
    drop(waiter);
    // No thread takes the lock for a dead guest.
    holder.setlk(held, 1, UNLOCK)?;
    let mut third = fixture.guest(&Setup::default())?;
    let node = NodeId::new(third.lookup(NodeId::ROOT, c"locked")?.nodeid);
    let wanted = NodeAndFile {
        node,
        file: third.open(node, OFlags::RDWR)?,
    };
    let ticket = third.submit_setlkw(1, wanted, 3, WRITE_LOCK)?;
    third.finish_within(ticket, SOON)?;
    drop((holder, third));
    fixture.survive(&[])
}

#[test]
fn destroy_ends_the_wait_and_the_locks() -> Result<()> {
    let mut waiting = Waiting::new()?;
    waiting.waiter.queue = 2;
    waiting.waiter.destroy()?;
    let outcome = waiting.outcome();
    ensure!(
        outcome.is_err_and(|error| error.errno().is_some()),
        "the wait goes on after DESTROY"
    );
    waiting.holder.destroy()?;
    let mut third = waiting.fixture.guest(&Setup::default())?;
    let node = NodeId::new(third.lookup(NodeId::ROOT, c"locked")?.nodeid);
    let wanted = NodeAndFile {
        node,
        file: third.open(node, OFlags::RDWR)?,
    };
    third
        .setlk(wanted, 3, WRITE_LOCK)
        .context("the lock of an ended session")?;
    drop(third);
    let Waiting {
        fixture,
        holder,
        waiter,
        ..
    } = waiting;
    drop((holder, waiter));
    fixture.survive(&[])
}
