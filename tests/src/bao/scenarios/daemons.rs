//! Daemons that are late, end, hang, or return.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::{NodeId, Operation, WriteIn};

use rustix::io::Errno;

use super::Test;
use crate::bao::guest::{Guest, READY, register};
use crate::bao::work;

/// Limit for an access that waits for no other process: less than the 5 s that the device model
/// waits for a daemon's answer.
const PROMPT: Duration = Duration::from_millis(4500);

/// Limit for an access during which the device model stops a hanging daemon's queues and gives it
/// up.
const GIVE_UP_LIMIT: Duration = Duration::from_secs(15);

/// The guest probes without a daemon. Its first requests wait in their queue, and nothing else
/// waits.
pub(super) fn guest_waits_for_a_late_daemon_in_its_queues_only(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(0)?.within(PROMPT);
        fixture.device(0)?.until_attached(GIVE_UP_LIMIT)?;
        let (mut guest, _) = cpu.probe()?;
        for _ in 0..3 {
            // It unbinds although there is no daemon.
            cpu.unbind(1)?;
            (guest, _) = cpu.bind()?;
        }
        let statfs = guest.submit(1, NodeId::ROOT, Operation::Statfs, &[], 512)?;
        ensure!(!guest.is_finished(&statfs)?, "a reply without a daemon");
        let _daemon = fixture.start_daemon(0)?;
        // The daemon has not seen INIT, and says so; any reply is good here.
        match guest.finish(statfs) {
            Ok(_) => bail!("an answer without a session"),
            Err(error) => ensure!(error.errno().is_some(), "{error}"),
        }
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), 0)?;
        fixture.finish(frontend)
    })
}

/// A guest that mounts without a daemon gets an error after the device model's wait, so that its
/// driver can be unbound. Later it mounts anew with a daemon that is there by then.
pub(super) fn mount_fails_in_time_without_a_daemon_and_the_driver_is_unbound(
    test: &Test,
) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let frontend = fixture.start_frontend_with(&["--daemon-wait=1"])?;
        let cpu = fixture.cpu(0)?.within(PROMPT);
        fixture.device(0)?.until_attached(GIVE_UP_LIMIT)?;
        let (mut guest, probed) = cpu.probe()?;
        for _ in 0..2 {
            let begun = Instant::now();
            is_not_connected(guest.init())?;
            ensure!(
                begun.elapsed() >= Duration::from_secs(1),
                "{:?}",
                begun.elapsed()
            );
            let ticket = write_something(&mut guest)?;
            is_not_connected(guest.finish(ticket))?;
            ensure!(cpu.get(register::STATUS)? == READY, "the device is broken");
            cpu.unbind(probed.queues)?;
            (guest, _) = cpu.bind()?;
        }
        is_not_connected(guest.init())?;
        let _daemon = fixture.start_daemon(0)?;
        // Without a reset, the next session is the daemon's.
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), 0)?;
        fixture.finish(frontend)
    })
}

/// A guest whose daemon is killed gets an error for each request, those in flight included. So its
/// driver can be unbound, and after that it works with the next daemon.
pub(super) fn guest_unbinds_from_a_killed_daemon_and_works_with_the_next(
    test: &Test,
) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let mut daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(0)?;
        let (mut guest, probed) = cpu.probe()?;
        for round in 0..4 {
            guest.init().context("INIT")?;
            work::with_files(&mut guest, &fixture.share(0), round)?;
            if round % 2 == 0 {
                daemon.kill_all()?;
            } else {
                daemon.pause()?;
                let tickets = [write_something(&mut guest)?, write_something(&mut guest)?];
                daemon.kill_all()?;
                for ticket in tickets {
                    is_not_connected(guest.finish(ticket))?;
                }
            }
            // Later requests as well: `virtio_fs_drain_queue` waits for all. The last of the
            // daemon's processes ends a moment after the first.
            let deadline = Instant::now() + PROMPT;
            loop {
                let ticket = write_something(&mut guest)?;
                let finished = guest.finish(ticket);
                match finished {
                    Err(error) if error.errno() == Some(Errno::BADF) => {
                        ensure!(Instant::now() < deadline, "the daemon still replies");
                    }
                    finished => break is_not_connected(finished)?,
                }
            }
            let prompt = cpu.within(PROMPT);
            ensure!(
                prompt.get(register::STATUS)? == READY,
                "the device is broken"
            );
            prompt.unbind(probed.queues)?;
            // Both orders.
            if round < 2 {
                daemon = fixture.start_daemon(0)?;
                (guest, _) = prompt.bind()?;
            } else {
                (guest, _) = prompt.bind()?;
                daemon = fixture.start_daemon(0)?;
            }
        }
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), 99)?;
        fixture.finish(frontend)
    })
}

/// A guest whose daemon is killed unmounts, and mounts again with the next daemon, and nobody
/// unbinds its driver. Before that the next daemon sees none of the guest's requests.
pub(super) fn guest_of_a_killed_daemon_mounts_anew_with_the_next(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let mut daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(0)?;
        let (mut guest, _) = cpu.probe()?;
        for round in 0..4 {
            guest.init().context("INIT")?;
            work::with_files(&mut guest, &fixture.share(0), round)?;
            daemon.pause()?;
            let ticket = write_something(&mut guest)?;
            daemon.kill_all()?;
            is_not_connected(guest.finish(ticket))?;
            if round % 2 == 0 {
                daemon = fixture.start_daemon(0)?;
            }
            let ticket = write_something(&mut guest)?;
            is_not_connected(guest.finish(ticket))?;
            let ticket = guest.submit(1, NodeId::ROOT, Operation::Destroy, &[], 512)?;
            guest.finish(ticket).context("DESTROY")?;
            if round % 2 == 1 {
                // INIT waits for it.
                daemon = fixture.start_daemon(0)?;
            }
        }
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), 99)?;
        fixture.finish(frontend)
    })
}

fn is_not_connected<T: std::fmt::Debug>(finished: crate::driver::Result<T>) -> Result<()> {
    match finished {
        Err(error) if error.errno() == Some(Errno::NOTCONN) => Ok(()),
        other => bail!("the reply of a lost daemon's request: {other:?}"),
    }
}

/// A hanging daemon delays the guest's CPU for a limited time if the device model has to ask it,
/// and not at all otherwise.
pub(super) fn guest_is_not_frozen_by_a_daemon_that_hangs(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let mut daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(0)?;
        let (mut guest, _) = cpu.probe()?;
        guest.init().context("INIT")?;
        daemon.pause()?;
        let prompt = cpu.within(PROMPT);
        for _ in 0..3 {
            let _never_answered = write_something(&mut guest)?;
            prompt.get(register::STATUS)?;
            prompt.load(register::CONFIG, 1)?;
        }
        let begun = Instant::now();
        cpu.within(GIVE_UP_LIMIT).set(register::STATUS, 0)?;
        ensure!(prompt.get(register::STATUS)? == 0, "not reset");
        ensure!(begun.elapsed() < GIVE_UP_LIMIT, "{:?}", begun.elapsed());
        // The daemon still hangs, and does not hinder a driver that binds.
        let (waiting, _) = cpu.within(GIVE_UP_LIMIT).probe()?;
        drop(waiting);
        daemon.kill_all()?;
        let _daemon = fixture.start_daemon(0)?;
        let (mut guest, _) = cpu.within(GIVE_UP_LIMIT).probe()?;
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), 0)?;
        fixture.finish(frontend)
    })
}

/// If the daemon hangs when the guest's driver is ready, the guest is told in limited time that the
/// device is broken. Its requests get errors from then on, so that its driver can be unbound.
pub(super) fn guest_is_told_of_a_daemon_that_hangs_from_the_start(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let mut daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(0)?;
        let (mut guest, _) = cpu.probe()?;
        // The reply shows that the daemon is connected.
        guest.init().context("INIT")?;
        drop(guest);
        cpu.unbind(1)?;
        daemon.pause()?;
        let (mut guest, probed) = cpu.within(GIVE_UP_LIMIT).bind()?;
        cpu.within(PROMPT).until_broken()?;
        is_not_connected(guest.init())?;
        let ticket = write_something(&mut guest)?;
        is_not_connected(guest.finish(ticket))?;
        drop(guest);
        cpu.within(PROMPT).unbind(probed.queues)?;
        daemon.kill_all()?;
        let _daemon = fixture.start_daemon(0)?;
        let (mut guest, _) = cpu.within(GIVE_UP_LIMIT).probe()?;
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), 0)?;
        fixture.finish(frontend)
    })
}

fn write_something(guest: &mut Guest) -> Result<crate::driver::Ticket> {
    let operation = Operation::Write(WriteIn {
        fh: 1,
        size: 5,
        ..WriteIn::default()
    });
    Ok(guest.submit(1, NodeId::ROOT, operation, b"hello", 512)?)
}
