//! What the programs beside the daemon may still do while they serve. `bao` and `dvk_mount` have
//! the same checks for the device model, the fd store and the mount.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::confinement::{self, DAC_OVERRIDE};
use gangplank_tests::daemon::{self, Daemon};
use gangplank_tests::dvk::{Server, Switch, Topology};
use gangplank_tests::dvk_tunnel::Tunnel;
use gangplank_tests::harmless_signals::{StatusAt, survive};
use gangplank_tests::nfs::NfsServer;
use gangplank_tests::relay::Relay;
use gangplank_tests::{process, tools};
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

/// A configuration of a server at a switch that does not exist yet.
pub(crate) const RHOSTFS: &str = "rhs SHARE { rhs_dcid 0; rhs_ep 1; rhs_dir \"/\"; \
                                  rhs_socket \"fs.sock\"; rhs_carrier local; }; \
                                  local SWITCH { local_socket \"switch\"; };";

/// What the command line says counts, and the environment where it says nothing.
#[test]
fn log_level_overrides_the_environment_in_every_program() -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("rhostfs.cfg"), RHOSTFS)?;
    let programs: [(PathBuf, &[&str]); 3] = [
        (
            tools::frontend()?,
            &["relay", "--backend=fs.sock", "--listen=guest.sock"],
        ),
        (tools::dvk()?, &["serve", "--config=rhostfs.cfg"]),
        (
            tools::nfs()?,
            &[
                "serve",
                "--backend=fs.sock",
                "--client=*(rw)",
                "--listen=127.0.0.1:0",
            ],
        ),
    ];
    for (program, arguments) in programs {
        for (variable, option) in [("off", "info"), ("info", "off")] {
            let (log, notify) = (
                directory.path().join("log"),
                directory.path().join("notify"),
            );
            let manager = UnixDatagram::bind(&notify)?;
            manager.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut command = process::tied(&program, None);
            command
                .args(arguments)
                .arg(format!("--log-level={option}"))
                .env("RUST_LOG", variable)
                .env("NOTIFY_SOCKET", &notify)
                .current_dir(directory.path())
                .stderr(File::create(&log)?);
            let mut child = process::spawn(command)?;
            let ready = manager.recv(&mut [0; 4096]).context("it is not ready");
            // At this, each logs its status.
            process::signal(&child, Signal::USR1)?;
            process::signal(&child, Signal::TERM)?;
            process::wait_within(&mut child, Duration::from_secs(20))?;
            let log = fs::read_to_string(&log)?;
            ready.with_context(|| log.clone())?;
            ensure!(
                log.is_empty() == (option == "off"),
                "{}: RUST_LOG={variable} --log-level={option}: {log:?}",
                program.display()
            );
            fs::remove_file(&notify)?;
        }
    }
    Ok(())
}

/// The group that `--socket-group` names may connect, and nobody else beside the owner.
#[test]
fn relay_lets_a_group_connect() -> Result<()> {
    let id = |what: &str| -> Result<String> {
        let output = Command::new("id").arg(what).output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let relay = Relay::start(
        Path::new("/nonexistent"),
        &[
            "--socket-group",
            "nobody-has-it",
            "--socket-group",
            &id("-gn")?,
        ],
    )?;
    let socket = relay.socket().metadata()?;
    ensure!(socket.mode() & 0o777 == 0o660, "{:o}", socket.mode());
    ensure!(socket.gid().to_string() == id("-g")?, "{}", socket.gid());
    relay.stop()?;

    let directory = tempfile::tempdir()?;
    let refused = Command::new(tools::frontend()?)
        .args(["relay", "--backend=fs.sock", "--listen=guest.sock"])
        .arg("--socket-group=nobody-has-it")
        .current_dir(directory.path())
        .output()?;
    let said = String::from_utf8(refused.stderr)?;
    let expected = "error: --socket-group: there is no group \"nobody-has-it\"";
    ensure!(
        !refused.status.success() && said.contains(expected),
        "{said}"
    );
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

/// No signal ends a daemon but SIGTERM, SIGINT, SIGQUIT and SIGKILL. Those at which somebody
/// expects a status have each write it to the log. `bao`, `dvk_mount`, `dvk_device` and `events`
/// have the same check for the device model, the mount, the forwarder and the program of the guest.
#[test]
fn signals_that_mean_nothing_end_no_program() -> Result<()> {
    let (directory, share) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    survive(daemon.pid(), StatusAt::Usr1, || daemon.log())?;
    let shown = format!("status: gangplankd {}: ", env!("CARGO_PKG_VERSION"));
    ensure!(daemon.log().contains(&shown), "{}", daemon.log());
    daemon.signal_all(Signal::USR1)?;

    let socket = directory.path().join("switch");
    let switch = Switch::start(&socket)?;
    let server = Server::start(&Topology::switch(socket), daemon.socket())?;
    confined_soon(server.pid())?;
    survive(switch.pid(), StatusAt::Usr1AndHup, || switch.log())?;
    survive(server.pid(), StatusAt::Usr1AndHup, || server.log())?;
    let tunnel = Tunnel::at_switch(daemon.socket())?;
    for pid in tunnel.pids() {
        survive(pid, StatusAt::Usr1AndHup, || tunnel.log())?;
    }

    let relay = Relay::start(Path::new("/nonexistent"), &[])?;
    relay.tell(&["status"])?;
    survive(relay.pid(), StatusAt::Usr1AndHup, || relay.log())?;
    relay.stop()?;

    let nfs = NfsServer::start(daemon.socket(), &["--client=*(rw)"])?;
    survive(nfs.pid(), StatusAt::Usr1AndHup, || nfs.log())?;
    ensure!(
        nfs.log()
            .contains("0 locked ranges of 0 clients in 0 files"),
        "{}",
        nfs.log()
    );
    nfs.end()?;

    ensure!(daemon.is_running()?, "{}", daemon.log());
    let (status, log) = daemon.stop()?;
    ensure!(status.success(), "{log}");
    Ok(())
}
