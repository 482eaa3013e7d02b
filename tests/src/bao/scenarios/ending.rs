//! Devices and device models that end, and the status that is reported.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::process::Signal;

use super::Test;
use crate::bao::fixture::Setup;
use crate::bao::guest::{LIMIT, register};
use crate::bao::{Hold, work};
use crate::harmless_signals::{StatusAt, survive};

/// A device model that gets SIGTERM during an access completes it first. Accesses that it has not
/// taken wait for its successor, with which the guest continues unaffected.
pub(super) fn sigterm_leaves_no_access_unanswered(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let mut frontend = fixture.start_frontend()?;
        let (cpu, device) = (fixture.cpu(0)?, fixture.device(0)?);
        let (mut guest, _) = cpu.probe()?;
        guest.init().context("INIT")?;
        thread::scope(|scope| -> Result<()> {
            device.hold_completion(Hold::Before);
            let access = scope.spawn(|| cpu.get(register::MAGIC_VALUE));
            device.until_held(LIMIT)?;
            frontend.signal(Signal::TERM)?;
            // The device model waits for the access.
            thread::sleep(Duration::from_millis(100));
            ensure!(frontend.ended()?.is_none(), "ended with an access in hand");
            device.release()?;
            let magic = access
                .join()
                .map_err(|_| anyhow::anyhow!("a CPU panicked"))??;
            ensure!(magic == 0x7472_6976, "magic value {magic:#x}");
            Ok(())
        })?;
        let status = frontend.wait()?;
        ensure!(status.success(), "ended with {status}");
        ensure!(
            device.unanswered().1 == 0,
            "an access was taken and not completed"
        );
        thread::scope(|scope| -> Result<()> {
            let access = scope.spawn(|| cpu.get(register::MAGIC_VALUE));
            device
                .until_waiting(LIMIT)
                .context("an access after the end")?;
            let frontend = fixture.start_frontend()?;
            let magic = access
                .join()
                .map_err(|_| anyhow::anyhow!("a CPU panicked"))??;
            ensure!(magic == 0x7472_6976, "magic value {magic:#x}");
            work::with_files(&mut guest, &fixture.share(0), 0)?;
            fixture.finish(frontend)
        })?;
        fixture.kernel.faults.none()
    })
}

/// A device that the driver removes, or never had, shows in the status and the exit status, and
/// harms no other.
pub(super) fn failing_device_harms_no_other(test: &Test) -> Result<()> {
    let setup = Setup {
        devices: 2,
        missing: 1,
        ..test.setup
    };
    test.fixture(setup, |fixture| {
        let _daemons = fixture.start_daemons()?;
        let frontend = fixture.start_frontend()?;
        let cpu = fixture.cpu(1)?;
        fixture.cpu(0)?.probe()?;
        let (mut guest, _) = cpu.probe()?;
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(1), 0)?;
        // The errno of a device that is being destroyed.
        let gone = if fixture.setup().abi.creates {
            Errno::INVAL
        } else {
            Errno::PERM
        };
        fixture.device(0)?.until_attached(LIMIT)?;
        fixture.device(0)?.fail_attach(gone);
        for round in 1..5 {
            work::with_files(&mut guest, &fixture.share(1), round)?;
        }
        let status = fixture.until_status(|text| text.matches("failed:").count() == 2)?;
        ensure!(status.contains("device 1:"), "{status}");
        fixture.kernel.faults.none()?;
        let ended = frontend.stop()?;
        ensure!(
            !ended.success(),
            "two devices failed, and the exit status says nothing of it"
        );
        fixture.kernel.faults.none()
    })
}

/// The status on the socket says what happened, and so does the log after SIGUSR1. No signal that
/// means nothing ends the program.
pub(super) fn status_is_told(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let frontend = fixture.start_frontend()?;
        fixture.device(0)?.until_attached(LIMIT)?;
        let before = fixture.until_status(|text| text.contains("device 0:"))?;
        ensure!(before.contains("daemon absent"), "{before}");
        let _daemon = fixture.start_daemon(0)?;
        let (mut guest, _) = fixture.cpu(0)?.probe()?;
        guest.init().context("INIT")?;
        work::with_files(&mut guest, &fixture.share(0), 0)?;
        let accesses = format!("accesses {},", fixture.device(0)?.completions());
        let status = fixture.until_status(|text| text.contains(&accesses))?;
        for part in [
            "status 0xf ",
            "daemon connected",
            "connections 1,",
            "faults 0,",
        ] {
            ensure!(status.contains(part), "no {part:?} in {status}");
        }
        let already = frontend.log().matches(&accesses).count();
        let pid = frontend.pid().as_raw_nonzero().get().cast_unsigned();
        survive(pid, StatusAt::Usr1AndHup, || frontend.log())?;
        ensure!(
            frontend.log().matches(&accesses).count() > already,
            "the status in the log is another one than at the socket:\n{}",
            frontend.log()
        );
        fixture.finish(frontend)
    })
}
