//! What the programs beside the daemon may still do while they serve. `bao` and `dvk_mount` have
//! the same checks for the device model, the fd store and the mount.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::confinement::{self, DAC_OVERRIDE};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk::{Server, Switch, Topology};
use gangplank_tests::relay::Relay;
use rustix::process::{Pid, Signal, kill_process};

/// First port of the server's node. No other test uses it.
const PORTS: u16 = 23_500;

#[test]
fn relay_keeps_what_it_connects_with() -> Result<()> {
    let relay = Relay::start(Path::new("/nonexistent"), &[])?;
    relay.tell(&["status"])?;
    confinement::check(relay.pid(), DAC_OVERRIDE)?;
    relay.stop()?;
    Ok(())
}

/// An operator is told what a command does while no guest is connected. No guest is sent to where
/// no daemon is.
#[test]
fn relay_without_guests_says_what_a_command_does() -> Result<()> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let relay = Relay::start(Path::new("/nonexistent"), &[])?;
    let status = relay.tell(&["status"])?;
    ensure!(
        status.contains("new guests wait for a daemon at /nonexistent: it does not exist"),
        "{status}"
    );
    let refused = relay.tell(&["switch", "/missing"]).unwrap_err().to_string();
    ensure!(
        refused.contains("cannot switch to /missing: it does not exist"),
        "{refused}"
    );
    ensure!(relay.tell(&["pause"])?.contains("nothing was paused"));
    ensure!(relay.tell(&["resume"])?.contains("nothing was paused"));
    let socket = daemon.socket().to_str().context("a path that is no text")?;
    relay.tell(&["switch", socket])?;
    let status = relay.tell(&["status"])?;
    ensure!(
        status.contains(&format!("new guests go to {socket}")),
        "{status}"
    );
    // It was not connected to: a daemon that serves one connection would have ended.
    ensure!(!daemon.log().contains("guest 1"), "{}", daemon.log());
    relay.stop()?;
    Ok(())
}

#[test]
fn relay_has_no_list_where_the_operator_wants_none() -> Result<()> {
    for (action, mode) in [("none", "0"), ("log", "2"), ("kill", "2")] {
        let option = format!("--seccomp={action}");
        let relay = Relay::start(Path::new("/nonexistent"), &[&option])?;
        relay.tell(&["status"])?;
        ensure!(confinement::seccomp_mode(relay.pid())? == mode, "{action}");
        relay.stop()?;
    }
    Ok(())
}

#[test]
fn switch_and_server_keep_what_they_connect_with() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("switch");
    let switch = Switch::start(&socket)?;
    for topology in [Topology::switch(socket), Topology::loopback(PORTS)] {
        let server = Server::start(&topology, Path::new("/nonexistent"))?;
        confined_soon(server.pid())?;
        server.signal(Signal::TERM)?;
    }
    confined_soon(switch.pid())
}

/// The server confines itself after it has read its configuration.
fn confined_soon(pid: u32) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match confinement::check(pid, DAC_OVERRIDE) {
            Err(_) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

/// Signals whose default ends a program, and that mean nothing to these.
const HARMLESS: [Signal; 6] = [
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::IO,
];

/// A signal that somebody sends by mistake, or for a status, ends no program. SIGUSR1 has those
/// that have a status write it to the log.
#[test]
fn signals_that_mean_nothing_end_no_program() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("switch");
    let switch = Switch::start(&socket)?;
    let server = Server::start(&Topology::switch(socket), Path::new("/nonexistent"))?;
    confined_soon(server.pid())?;
    let relay = Relay::start(Path::new("/nonexistent"), &[])?;
    relay.tell(&["status"])?;
    let share = tempfile::tempdir()?;
    let mut daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    for signal in HARMLESS {
        daemon.signal_all(signal)?;
        for pid in [switch.pid(), server.pid(), relay.pid()] {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            kill_process(pid.context("no process id")?, signal)?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let logs = || [switch.log(), server.log(), relay.log()];
    while !logs().iter().all(|log| log.contains("status: ")) {
        ensure!(Instant::now() < deadline, "{:?}", logs());
        std::thread::sleep(Duration::from_millis(10));
    }
    confined_soon(switch.pid())?;
    confined_soon(server.pid())?;
    relay.tell(&["status"])?;
    relay.stop()?;
    ensure!(daemon.is_running()?, "{}", daemon.log());
    let (status, log) = daemon.stop()?;
    ensure!(status.success(), "{log}");
    Ok(())
}
