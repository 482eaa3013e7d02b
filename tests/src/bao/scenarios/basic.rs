//! Scenarios without faults.

use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Pid;

use super::Test;
use crate::bao::fixture::{Setup, TAG};
use crate::bao::{kill_and_wait, work};
use crate::confinement::{self, DAC_OVERRIDE, SYS_RESOURCE};

/// The device model finds the driver's generation, the guest finds its device, and both sides see
/// the same files.
pub(super) fn guest_mounts_and_works_with_files(test: &Test) -> Result<()> {
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let (mut guest, probed) = fixture.cpu(0)?.probe()?;
        ensure!(probed.tag == TAG && probed.queues == 1, "{probed:?}");
        guest.init().context("INIT")?;
        for round in 0..3 {
            work::with_files(&mut guest, &fixture.share(0), round)?;
        }
        fixture.device(0)?.eventfds.expect((2, 1))?;
        fixture.finish(frontend)
    })
}

/// Each thread of the device model has a list of system calls and few capabilities, and the fd
/// store has none. That holds as well for an fd store that is started because one has gone.
pub(super) fn processes_keep_what_they_need(test: &Test) -> Result<()> {
    let number = |process: Pid| process.as_raw_nonzero().get().unsigned_abs();
    test.fixture(test.setup, |fixture| {
        let _daemon = fixture.start_daemon(0)?;
        let frontend = fixture.start_frontend()?;
        let (mut guest, _) = fixture.cpu(0)?.probe()?;
        guest.init().context("INIT")?;
        confinement::check(number(frontend.pid()), DAC_OVERRIDE | SYS_RESOURCE)?;
        let first = fixture.holder(&frontend)?;
        confinement::check(number(first), 0)?;
        kill_and_wait(first)?;
        fixture.until_status(|status| {
            fixture
                .holder(&frontend)
                .is_ok_and(|next| status.contains(&format!("holder process {}", number(next))))
        })?;
        let second = fixture.holder(&frontend)?;
        ensure!(first != second, "the same process");
        confinement::check(number(second), 0)?;
        fixture.finish(frontend)
    })
}

/// Each of several request queues works. The tag comes from the daemon, and the memory has a node
/// of its own.
pub(super) fn queues_tag_and_memory_are_as_configured(test: &Test) -> Result<()> {
    let setup = Setup {
        queues: 3,
        tag: false,
        memory_node: true,
        ..test.setup
    };
    test.fixture(setup, |fixture| {
        let frontend = fixture.start_frontend()?;
        let _daemon = fixture.start_daemon(0)?;
        let (mut guest, probed) = fixture.cpu(0)?.probe()?;
        ensure!(probed.tag == TAG && probed.queues == 3, "{probed:?}");
        guest.init().context("INIT")?;
        for round in 0..9 {
            guest.queue = 1 + round % 3;
            work::with_files(&mut guest, &fixture.share(0), round)?;
        }
        fixture.device(0)?.eventfds.expect((4, 1))?;
        fixture.finish(frontend)
    })
}

/// The devices of several guests, all at the same address, work side by side.
pub(super) fn several_guests_work_at_once_each_with_its_own_share(test: &Test) -> Result<()> {
    let setup = Setup {
        devices: 3,
        ..test.setup
    };
    test.fixture(setup, |fixture| {
        let _daemons = fixture.start_daemons()?;
        let frontend = fixture.start_frontend()?;
        thread::scope(|scope| {
            let guests: Vec<_> = (0..3)
                .map(|id| {
                    scope.spawn(move || -> Result<()> {
                        let (mut guest, _) = fixture.cpu(id)?.probe()?;
                        guest.init().context("INIT")?;
                        for round in 0..10 {
                            // The shares have the same names, so that a mix-up shows.
                            work::with_files(&mut guest, &fixture.share(id), round)
                                .with_context(|| format!("guest {id}"))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            guests
                .into_iter()
                .try_for_each(|guest| guest.join().map_err(|_| anyhow!("a guest panicked"))?)
        })?;
        fixture.finish(frontend)
    })
}
