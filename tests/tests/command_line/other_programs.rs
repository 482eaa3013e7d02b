//! What the programs beside the daemon may still do while they serve. `bao` and `dvk_mount` have
//! the same checks for the device model, the fd store and the mount.

use std::path::Path;

use anyhow::{Result, ensure};
use gangplank_tests::confinement::{self, DAC_OVERRIDE};
use gangplank_tests::dvk::{Server, Switch, Topology};
use gangplank_tests::relay::Relay;
use rustix::process::Signal;

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
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match confinement::check(pid, DAC_OVERRIDE) {
            Err(_) if std::time::Instant::now() < deadline => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            done => return done,
        }
    }
}
