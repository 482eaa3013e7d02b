//! What a guest sees of the ends of the daemon's processes.

use anyhow::{Result, ensure};

use super::first_minute::{SOCKET, UNIT};
use super::system::System;

/// How often the service was started by systemd alone.
fn expect_restarts(system: &mut System, number: &str) -> Result<()> {
    system.expect(UNIT, &[("NRestarts", number)])
}

pub(super) fn guest_goes_on_when_its_worker_or_the_acceptor_is_killed(
    system: &mut System,
) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    let session = system.session(SOCKET, "deaths")?;
    for name in ["worker", "acceptor"] {
        system.kill_and_wait(UNIT, name)?;
        session.goes_on(system)?;
        system.use_share(SOCKET, name)?;
        system.expect_running(UNIT)?;
    }
    session.end(system)
}

pub(super) fn guest_whose_keeper_is_killed_ends_alone(system: &mut System) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    let lost = system.session(SOCKET, "lost")?;
    let keeper = system.process(UNIT, "keeper")?;
    let other = system.session(SOCKET, "other")?;
    system.sh(&format!("kill -KILL {keeper}"))?;
    lost.is_lost(system)?;
    other.goes_on(system)?;
    system.expect_running(UNIT)?;
    other.end(system)
}

pub(super) fn guest_goes_on_over_a_reload(system: &mut System) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    let session = system.session(SOCKET, "reloaded")?;
    let (main, acceptor) = (
        system.property(UNIT, "MainPID")?,
        system.process(UNIT, "acceptor")?,
    );
    // An upgrade replaces the file.
    system.sh("cp /usr/bin/gangplankd /usr/bin/new && mv /usr/bin/new /usr/bin/gangplankd")?;
    for _ in 0..2 {
        system.sh("systemctl reload gangplankd@home")?;
        session.goes_on(system)?;
        system.use_share(SOCKET, "guest")?;
    }
    system.expect_running(UNIT)?;
    ensure!(system.property(UNIT, "MainPID")? == main);
    ensure!(system.process(UNIT, "acceptor")? != acceptor, "no reload");
    // A program that does not start is refused, and the running one goes on.
    system.sh(
        "mv /usr/bin/gangplankd /usr/bin/kept && printf '#!/bin/sh\\ncase $1 in --reload) \
         exec /usr/bin/kept \"$@\";; esac\\nexit 1\\n' >/usr/bin/gangplankd && \
         chmod 755 /usr/bin/gangplankd",
    )?;
    let refused = system.fails("systemctl reload gangplankd@home");
    system.sh("mv /usr/bin/kept /usr/bin/gangplankd")?;
    refused?;
    session.goes_on(system)?;
    session.end(system)
}

pub(super) fn guest_goes_on_over_restarts(system: &mut System) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    let session = system.session(SOCKET, "restarted")?;
    for _ in 0..2 {
        let main = system.property(UNIT, "MainPID")?;
        system.sh("systemctl restart gangplankd@home")?;
        ensure!(system.property(UNIT, "MainPID")? != main, "no restart");
        session.goes_on(system)?;
        system.use_share(SOCKET, "guest")?;
    }
    session.end(system)?;
    // Nothing of a guest that has gone is held.
    system.wait_until(&format!(
        "[ $(systemctl show -P NFileDescriptorStore {UNIT}) = 0 ]"
    ))
}

pub(super) fn guest_goes_on_when_everything_is_killed(system: &mut System) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    let session = system.session(SOCKET, "killed")?;
    for number in ["1", "2"] {
        system.sh("systemctl kill --signal=KILL gangplankd@home")?;
        system.wait_until(&format!(
            "[ $(systemctl show -P NRestarts {UNIT}) = {number} ] && systemctl is-active {UNIT}"
        ))?;
        session.goes_on(system)?;
        system.use_share(SOCKET, "guest")?;
    }
    session.end(system)
}

pub(super) fn guest_goes_on_when_others_than_systemd_end_the_daemon(
    system: &mut System,
) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    let session = system.session(SOCKET, "terminated")?;
    let main = system.property(UNIT, "MainPID")?;
    system.sh(&format!("kill -TERM {main}"))?;
    system.wait_until(&format!(
        "[ $(systemctl show -P NRestarts {UNIT}) = 1 ] && systemctl is-active {UNIT}"
    ))?;
    session.goes_on(system)?;
    session.end(system)
}

pub(super) fn guest_goes_on_when_the_watchdog_ends_a_stopped_daemon(
    system: &mut System,
) -> Result<()> {
    // The unit's own is too long for a test.
    system.change(UNIT, "WatchdogSec=8")?;
    system.sh("systemctl start gangplankd@home")?;
    let session = system.session(SOCKET, "watched")?;
    // A daemon that works is left alone.
    system.sh("sleep 9")?;
    expect_restarts(system, "0")?;
    for name in ["gangplankd", "acceptor"] {
        let before = system.property(UNIT, "NRestarts")?;
        let process = system.process(UNIT, name)?;
        system.sh(&format!("kill -STOP {process}"))?;
        system.wait_until(&format!(
            "[ $(systemctl show -P NRestarts {UNIT}) -gt {before} ] && systemctl is-active {UNIT}"
        ))?;
        session.goes_on(system)?;
        system.use_share(SOCKET, "guest")?;
    }
    session.end(system)
}

pub(super) fn stop_ends_guests(system: &mut System) -> Result<()> {
    system.sh("systemctl start gangplankd@home")?;
    let session = system.session(SOCKET, "stopped")?;
    let held: u32 = system.property(UNIT, "NFileDescriptorStore")?.parse()?;
    ensure!(held > 0, "nothing is held");
    let group = system.property(UNIT, "ControlGroup")?;
    system.stop(UNIT)?;
    session.is_lost(system)?;
    // Nobody is left, and the next start is a new one.
    let left = system.sh(&format!(
        "cat '/sys/fs/cgroup{group}/cgroup.procs' 2>/dev/null; true"
    ))?;
    ensure!(left.is_empty(), "processes are left: {left}");
    system.sh("systemctl start gangplankd@home")?;
    system.use_share(SOCKET, "guest")
}
