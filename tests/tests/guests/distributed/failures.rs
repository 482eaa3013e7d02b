//! Servers of the cluster die and are started again: guests wait, and no call fails.

use std::time::Duration;

use anyhow::Result;
use gangplank_tests::guest_work::{self, Program};

use crate::fixture::{Fixture, LIMIT};

/// Appends and reads back, until told to end.
const WORK: Program = (
    "append",
    "cd /never; i=0; while ! test -e /dev/shm/end; do \
       echo line $i >>log-$(cat /dev/shm/host) && i=$((i+1)) && \
       [ $(wc -l <log-$(cat /dev/shm/host)) = $i ] || exit 1; done",
);

/// How long guests work before and after each event, at least.
const WORKING: Duration = Duration::from_millis(700);

/// Both guests work while `event` happens.
fn under_work(fixture: &mut Fixture, event: impl FnOnce(&mut Fixture) -> Result<()>) -> Result<()> {
    for (number, host) in fixture.hosts.iter_mut().enumerate() {
        host.guest.sh(&format!(
            "rm -f /never/log-{number}; echo {number} >/dev/shm/host"
        ))?;
        guest_work::start(&mut host.guest, &[WORK])?;
    }
    std::thread::sleep(WORKING);
    event(fixture)?;
    std::thread::sleep(WORKING);
    for host in &mut fixture.hosts {
        guest_work::end(&mut host.guest, 1, LIMIT)?;
        guest_work::check_kernel_log(&mut host.guest)?;
    }
    Ok(())
}

pub(crate) fn chunk_server_killed(fixture: &mut Fixture) -> Result<()> {
    under_work(fixture, |fixture| {
        fixture.cluster.kill_chunk_server(0);
        std::thread::sleep(WORKING);
        fixture.cluster.start_chunk_server(0)
    })
}

pub(crate) fn master_killed(fixture: &mut Fixture) -> Result<()> {
    under_work(fixture, |fixture| {
        fixture.cluster.kill_master();
        std::thread::sleep(WORKING);
        fixture.cluster.start_master()
    })
}
