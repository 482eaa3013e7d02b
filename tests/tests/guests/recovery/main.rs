//! A worker is killed, and its guest goes on with the next one.

mod cloud_hypervisor;
mod device;
mod handshake;
mod many_inodes;
mod out_of_memory;
mod reconnected;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{GetattrIn, NodeId, Operation};
use gangplank_tests::driver::fixture::{Fixture, wait_for_log};
use gangplank_tests::driver::ring::CallKind;
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::wait;
use rustix::process::{Pid, Signal, kill_process};

const GETATTR: Operation<'static> = Operation::Getattr(GetattrIn {
    getattr_flags: 0,
    dummy: 0,
    fh: 0,
});

/// Limit for a worker to be replaced.
const REPLACING: Duration = Duration::from_secs(60);

/// Kills under load, for each way to serve.
const KILLS: usize = 30;

/// Of so many kills one comes while the next worker starts.
const KILLS_AT_START: usize = 3;

/// Longer than a life after which the next worker starts without a delay, in ms. Delays grow to a
/// second, in which nothing is in flight that a kill could disturb.
const LIFE_MS: u64 = 110;

/// Long enough for a worker to have signalled as often as it does.
const SIGNALLED: Duration = Duration::from_millis(50);

/// Bytes of one signal in a socket.
const SIGNAL_LEN: usize = size_of::<u64>();

/// No limit of deaths that a test could reach.
const MANY: &str = "--max-crashes=100000";

/// Kills the worker of the only guest. Returns its process id.
fn kill_worker(fixture: &Fixture) -> Result<u32> {
    let deadline = Instant::now() + REPLACING;
    loop {
        if let Ok(worker) = fixture.last_worker()
            && kill(worker).is_ok()
        {
            return Ok(worker);
        }
        ensure!(Instant::now() < deadline, "no worker: {}", fixture.log());
    }
}

fn kill(process: u32) -> Result<()> {
    let process = Pid::from_raw(process.try_into()?).context("a process id")?;
    Ok(kill_process(process, Signal::KILL)?)
}

/// Waits until another worker than `old` serves the guest.
fn wait_for_next(fixture: &Fixture, old: u32) -> Result<()> {
    let waited = wait::until("there is a next worker", REPLACING, || {
        Ok(fixture.last_worker().is_ok_and(|worker| worker != old))
    });
    waited.with_context(|| fixture.log())
}

/// The pauses that the log tells, in ms, in ascending order.
fn pauses(log: &str) -> Vec<f64> {
    let parts = log.split("is served again after ").skip(1);
    let mut pauses: Vec<f64> = parts
        .filter_map(|part| part.split_whitespace().next()?.parse().ok())
        .collect();
    pauses.sort_by(f64::total_cmp);
    pauses
}

#[test]
fn an_idle_guest_does_not_notice_that_its_worker_is_killed() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY])?;
    let mut guest = fixture.guest(&Setup::default())?;
    let mut pause = Duration::ZERO;
    for death in 1..=20 {
        let old = kill_worker(&fixture)?;
        let start = Instant::now();
        guest
            .getattr(NodeId::ROOT, None)
            .with_context(|| fixture.log())?;
        pause = pause.max(start.elapsed());
        wait_for_next(&fixture, old)?;
        wait_for_log(&fixture.daemon, &format!("death {death}"))?;
    }
    eprintln!(
        "longest GETATTR: {pause:?}; {:?} ms",
        pauses(&fixture.daemon.log())
    );
    // The session is the one from before.
    ensure!(guest.stop_ring(1)? > 0);
    drop(guest);
    fixture.wait_until_idle()
}

/// A guest in User Mode Linux can sleep although it was signalled, and the signal before the death
/// may be the one that it missed.
#[test]
fn the_next_worker_signals_a_guest_that_sleeps_more_than_once() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY])?;
    let setup = Setup {
        call: CallKind::Socket,
        event_idx: true,
        ..Setup::default()
    };
    let mut guest = fixture.guest(&setup)?;
    guest.getattr(NodeId::ROOT, None)?;
    // A reply that the guest does not take.
    let used = guest.rings[1].used_index(&guest.memory);
    let ticket = guest.submit(1, NodeId::ROOT, GETATTR, &[], 256)?;
    let deadline = Instant::now() + REPLACING;
    while guest.rings[1].used_index(&guest.memory) == used {
        ensure!(Instant::now() < deadline, "no reply: {}", fixture.log());
        thread::sleep(Duration::from_millis(1));
    }
    while guest.rings[1].drain_call() > 0 {
        thread::sleep(SIGNALLED);
    }
    let old = kill_worker(&fixture)?;
    wait_for_next(&fixture, old)?;
    wait_for_log(&fixture.daemon, "death 1")?;
    let (mut bytes, deadline) = (0, Instant::now() + REPLACING);
    while bytes <= SIGNAL_LEN {
        ensure!(
            Instant::now() < deadline,
            "{bytes} bytes of signals: {}",
            fixture.log()
        );
        thread::sleep(Duration::from_millis(1));
        bytes += guest.rings[1].drain_call();
    }
    guest.finish(ticket)?;
    drop(guest);
    fixture.survive(&[])
}

#[test]
fn requests_in_flight_are_answered_once_however_often_the_worker_is_killed() -> Result<()> {
    for (arguments, event_idx) in [
        (&[MANY][..], false),
        (&[MANY], true),
        (&[MANY, "--thread-pool-size=4"], false),
    ] {
        let fixture = Fixture::quiet(arguments)?;
        let setup = Setup {
            event_idx,
            ..Setup::default()
        };
        let mut guest = fixture.guest(&setup)?;
        let stop = Arc::new(AtomicBool::new(false));
        let killed = thread::scope(|scope| -> Result<usize> {
            let killer = scope.spawn(|| -> Result<usize> {
                let mut killed = 0;
                while !stop.load(Ordering::Relaxed) {
                    let old = kill_worker(&fixture)?;
                    wait_for_next(&fixture, old)?;
                    killed += 1;
                    // In most rounds while the next one serves, else while it starts.
                    let least = match killed % KILLS_AT_START {
                        0 => 0,
                        _ => LIFE_MS,
                    };
                    thread::sleep(Duration::from_millis(least + fastrand::u64(0..40)));
                    if killed == KILLS {
                        break;
                    }
                }
                Ok(killed)
            });
            let served = (|| -> Result<()> {
                while !killer.is_finished() {
                    burst(&mut guest)?;
                }
                burst(&mut guest)
            })();
            stop.store(true, Ordering::Relaxed);
            let killed = killer.join().expect("no panic");
            served.with_context(|| fixture.log())?;
            killed
        })?;
        ensure!(killed == KILLS, "{killed} deaths");
        let pauses = pauses(&fixture.daemon.log());
        let middle = pauses.get(pauses.len() / 2);
        eprintln!(
            "{arguments:?}: {killed} deaths, {} pauses: middle {middle:?} ms, longest {:?} ms",
            pauses.len(),
            pauses.last()
        );
    }
    Ok(())
}

/// Sends 32 requests and waits for each. The driver fails if one comes back twice.
fn burst(guest: &mut Driver) -> Result<()> {
    let tickets = (0..32)
        .map(|_| guest.submit(1, NodeId::ROOT, GETATTR, &[], 256))
        .collect::<Result<Vec<_>, _>>()?;
    for ticket in tickets {
        guest.finish(ticket)?;
    }
    Ok(())
}

#[test]
fn workers_that_die_again_and_again_end_the_connection() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let guest = fixture.guest(&Setup::default())?;
    for death in 1..=10 {
        let old = kill_worker(&fixture)?;
        // There is none after the last.
        if death < 10 {
            wait_for_next(&fixture, old)?;
        }
    }
    guest.peer.wait_for_hang_up()?;
    wait_for_log(&fixture.daemon, "died 10 times within a minute")?;
    drop(guest);
    // The next guest is served.
    fixture
        .guest(&Setup::default())?
        .getattr(NodeId::ROOT, None)?;
    Ok(())
}

#[test]
fn the_daemon_ends_while_a_guest_is_without_a_worker() -> Result<()> {
    for pause in [0, 1, 3, 10] {
        let fixture = Fixture::quiet(&[MANY])?;
        let _guest = fixture.guest(&Setup::default())?;
        for _ in 0..5 {
            kill_worker(&fixture)?;
        }
        thread::sleep(Duration::from_millis(pause));
        let (status, log) = fixture.daemon.stop()?;
        ensure!(status.success(), "{status}: {log}");
    }
    Ok(())
}
