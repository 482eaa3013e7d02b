//! Device models that are killed at any moment, and how their successors continue.

use std::borrow::Cow;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use gangplank_fuse::{NodeId, Operation};
use rustix::io::Errno;
use rustix::process::Pid;

use super::Test;
use crate::bao::fixture::{Fixture, Setup};
use crate::bao::guest::{Cpu, Guest, LIMIT, READY, register};
use crate::bao::{Hold, kill_and_wait, work};
use crate::driver::Error;
use crate::wait;

/// Number of times that a scenario kills the device model.
const DEATHS: u64 = 10;

/// The device model is killed while it waits for accesses. With its successor the guest continues
/// unaffected. The daemon notices nothing and has served requests meanwhile. Who kills the device
/// model by its name, as `kill -9 $(pidof gangplank-frontend)` does, does not kill the holder.
pub(super) fn guest_goes_on_with_the_successor_of_a_killed_device_model(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let mut frontend = fixture.start_frontend()?;
        let (cpu, device) = (fixture.cpu(0)?, fixture.device(0)?);
        let (mut guest, _) = cpu.probe()?;
        guest.init().context("INIT")?;
        for round in 0..4 {
            work::with_files(&mut guest, &fixture.share(0), round)?;
            device.until_attached(LIMIT)?;
            has_another_name(fixture.holder(&frontend)?)?;
            frontend.kill()?;
            fixture.kernel.check()?;
            // Neither a kick nor an interrupt needs the device model.
            let statfs = guest.submit(1, NodeId::ROOT, Operation::Statfs, &[], 512)?;
            wait::until("the daemon replies", LIMIT, || {
                Ok(guest.is_finished(&statfs)?)
            })?;
            frontend = fixture.start_frontend()?;
            guest.finish(statfs).context("STATFS")?;
            ensure!(cpu.get(register::STATUS)? == READY, "another status");
            work::with_files(&mut guest, &fixture.share(0), 100 + round)?;
        }
        fixture.finish(frontend)
    })
}

/// Fails if a program that looks for processes by name would take the holder for the device model:
/// they compare the process's own name, the file name of its first argument, and its executable's.
fn has_another_name(holder: Pid) -> Result<()> {
    /// As much as the kernel keeps of a process's own name.
    const NAME: &str = "gangplank-front";
    let process = PathBuf::from(format!("/proc/{}", holder.as_raw_pid()));
    let comm = fs::read_to_string(process.join("comm"))?;
    let line = fs::read(process.join("cmdline"))?;
    let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let executable = fs::read_link(process.join("exe"))?;
    let names: [Cow<'_, str>; 3] = [
        comm.into(),
        String::from_utf8_lossy(first),
        executable.to_string_lossy(),
    ];
    for name in names {
        let base = name.rsplit('/').next().unwrap_or_default();
        ensure!(
            !base.is_empty() && !base.contains(NAME),
            "pidof finds the holder, as {name:?}"
        );
    }
    Ok(())
}

/// The device model is killed in COMPLETE, before or after it took effect. The access is completed
/// once, and the guest, which probes, works and unbinds meanwhile, notices nothing.
pub(super) fn access_being_completed_by_a_killed_device_model_is_completed_once(
    test: &Test,
) -> Result<()> {
    for hold in [Hold::Before, Hold::After] {
        test.fixture(test.setup, |fixture| {
            let _daemon = fixture.start_daemon(0)?;
            let mut frontend = fixture.start_frontend()?;
            let (cpu, device) = (fixture.cpu(0)?, fixture.device(0)?);
            let over = AtomicBool::new(false);
            thread::scope(|scope| -> Result<()> {
                let guest = scope.spawn(|| lives(&cpu, fixture, &over));
                let killed = (0..DEATHS).try_for_each(|death| -> Result<()> {
                    // Each round hits another access: some of the probe, some of the work.
                    device.until_completed(device.completions() + 3 + 11 * death, LIMIT)?;
                    device.hold_completion(hold);
                    device.until_held(LIMIT)?;
                    frontend.kill()?;
                    device.abandon()?;
                    fixture.kernel.check()?;
                    frontend = fixture.start_frontend()?;
                    Ok(())
                });
                over.store(true, Ordering::Relaxed);
                let lived = guest.join().map_err(|_| anyhow!("the guest panicked"))?;
                killed.and(lived)
            })?;
            fixture.finish(frontend)
        })
        .with_context(|| format!("{hold:?}"))?;
    }
    Ok(())
}

/// Probes, works and unbinds until `over`. No step may fail.
fn lives(cpu: &Cpu, fixture: &Fixture, over: &AtomicBool) -> Result<()> {
    cpu.find()?;
    let mut round = 0;
    while !over.load(Ordering::Relaxed) {
        let (mut guest, probed) = cpu.bind()?;
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), round)?;
        work::with_files(&mut guest, &fixture.share(0), round + 1)?;
        cpu.unbind(probed.queues)?;
        round += 2;
    }
    Ok(())
}

/// The device model is killed when it takes an access, before it can handle it, or while it talks
/// to the daemon. The access is completed once, and the guest either notices nothing or learns that
/// the device needs a reset.
pub(super) fn access_just_taken_by_a_killed_device_model_is_not_lost(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let mut frontend = fixture.start_frontend()?;
        let (cpu, device) = (fixture.cpu(0)?, fixture.device(0)?);
        let over = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let guest = scope.spawn(|| survives(&cpu, fixture, &over));
            let killed = (0..2 * DEATHS).try_for_each(|death| -> Result<()> {
                device.until_completed(device.completions() + 3 + 7 * death, LIMIT)?;
                device.strike_at_delivery(frontend.pid());
                frontend.wait()?;
                fixture.kernel.check()?;
                frontend = fixture.start_frontend()?;
                Ok(())
            });
            over.store(true, Ordering::Relaxed);
            let survived = guest.join().map_err(|_| anyhow!("the guest panicked"))?;
            killed.and(survived)
        })?;
        fixture.finish(frontend)
    })
}

/// Like [`lives`], but accepts that the device needs a reset.
fn survives(cpu: &Cpu, fixture: &Fixture, over: &AtomicBool) -> Result<()> {
    cpu.find()?;
    let mut round = 0;
    while !over.load(Ordering::Relaxed) {
        let (mut guest, probed) = cpu.bind()?;
        match works(&mut guest, fixture, round) {
            Ok(()) => {}
            Err(error) if matches!(error.downcast_ref(), Some(Error::NeedsReset)) => {
                // The files of this round remain. The next round uses other names.
            }
            Err(error) => return Err(error),
        }
        cpu.unbind(probed.queues)?;
        round += 1;
    }
    Ok(())
}

fn works(guest: &mut Guest, fixture: &Fixture, round: usize) -> Result<()> {
    guest.init()?;
    work::with_files(guest, &fixture.share(0), round)
}

/// The device model is killed repeatedly while several guests work. None of them notices.
pub(super) fn no_guest_notices_that_the_device_model_is_killed_under_load(
    test: &Test,
) -> Result<()> {
    let setup = Setup {
        devices: 3,
        ..test.setup
    };
    test.fixture(setup, |fixture| {
        let _daemons = fixture.start_daemons()?;
        let mut frontend = fixture.start_frontend()?;
        let over = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let over = &over;
            let guests: Vec<_> = (0..3)
                .map(|id| {
                    let probed = fixture.cpu(id).and_then(|cpu| Ok(cpu.probe()?.0));
                    scope.spawn(move || -> Result<()> {
                        let mut guest = probed?;
                        guest.init().context("INIT")?;
                        let mut round = 0;
                        while !over.load(Ordering::Relaxed) {
                            work::with_files(&mut guest, &fixture.share(id), round)
                                .with_context(|| format!("guest {id}"))?;
                            round += 1;
                        }
                        Ok(())
                    })
                })
                .collect();
            let killed = (0..DEATHS).try_for_each(|death| -> Result<()> {
                let device = fixture.device(usize::try_from(death % 3)?)?;
                device.until_completed(device.completions() + 20, LIMIT)?;
                frontend.kill()?;
                fixture.kernel.check()?;
                frontend = fixture.start_frontend()?;
                Ok(())
            });
            over.store(true, Ordering::Relaxed);
            guests.into_iter().try_fold((), |(), guest| {
                guest.join().map_err(|_| anyhow!("a guest panicked"))?
            })?;
            killed
        })?;
        fixture.finish(frontend)
    })
}

/// The device model and the daemon are killed, one after the other, with a request in flight. The
/// successor replies to it with an error. The guest works with the next daemon, after it has reset
/// the device or without.
pub(super) fn guest_of_a_daemon_that_died_while_there_was_no_device_model_is_not_stuck(
    test: &Test,
) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let mut daemon = fixture.start_daemon(0)?;
        let mut frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(0)?;
        let (mut guest, probed) = cpu.probe()?;
        for round in 0..4 {
            guest.init().context("INIT")?;
            work::with_files(&mut guest, &fixture.share(0), round)?;
            daemon.pause()?;
            let ticket = guest.submit(1, NodeId::ROOT, Operation::Statfs, &[], 512)?;
            frontend.kill()?;
            daemon.kill_all()?;
            if round % 2 == 1 {
                daemon = fixture.start_daemon(0)?;
            }
            frontend = fixture.start_frontend()?;
            match guest.finish(ticket) {
                Err(error) if error.errno() == Some(Errno::NOTCONN) => {}
                other => bail!("the request in flight: {other:?}"),
            }
            if round < 2 {
                cpu.unbind(probed.queues)?;
            }
            if round % 2 == 0 {
                daemon = fixture.start_daemon(0)?;
            }
            if round < 2 {
                (guest, _) = cpu.bind()?;
            }
        }
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), 99)?;
        fixture.finish(frontend)
    })
}

/// The process that keeps the devices is killed. The device model starts another one, and can be
/// killed itself after that.
pub(super) fn killed_holder_is_replaced_before_it_is_needed(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let mut frontend = fixture.start_frontend()?;
        let (mut guest, _) = fixture.cpu(0)?.probe()?;
        guest.init().context("INIT")?;
        for round in 0..3 {
            let before = fixture.holder(&frontend)?;
            kill_and_wait(before)?;
            wait::until("there is another holder", LIMIT, || {
                Ok(fixture.holder(&frontend).is_ok())
            })?;
            // The device model logs that the new process has everything.
            fixture.status()?;
            work::with_files(&mut guest, &fixture.share(0), round)?;
            frontend.kill()?;
            fixture.kernel.check()?;
            frontend = fixture.start_frontend()?;
            work::with_files(&mut guest, &fixture.share(0), round)?;
        }
        fixture.finish(frontend)
    })
}

/// A second device model is refused for devices in use, and disturbs neither the first nor the
/// guest.
pub(super) fn second_device_model_is_turned_away(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(0)?;
        let (mut guest, _) = cpu.probe()?;
        guest.init().context("INIT")?;
        let mut second = fixture.start_second_frontend()?;
        let status = second.wait()?;
        if status.success() {
            bail!("it ended with success: {}", second.log());
        }
        work::with_files(&mut guest, &fixture.share(0), 0)?;
        fixture.finish(frontend)
    })
}
