//! The service manager's watchdog, played by a socket.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::{process, tools};
use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::Fixture;
use crate::other_programs::RHOSTFS;

/// What the service manager permits.
const PERMITTED: Duration = Duration::from_secs(1);

/// Limit for a message that is to come.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits for a message that has `text`, for at most `limit`. Returns whether it came.
fn comes(manager: &UnixDatagram, text: &str, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    let mut buffer = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        manager.set_read_timeout(Some(left))?;
        match manager.recv(&mut buffer) {
            Ok(len) => {
                let message = std::str::from_utf8(&buffer[..len])?;
                if message.lines().any(|line| line == text) {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => bail!(error),
        }
    }
}

/// Takes what has come already.
fn drain(manager: &UnixDatagram) -> Result<()> {
    manager.set_nonblocking(true)?;
    while manager.recv(&mut [0; 4096]).is_ok() {}
    Ok(manager.set_nonblocking(false)?)
}

#[test]
fn the_watchdog_is_told_as_long_as_the_process_that_accepts_guests_answers() -> Result<()> {
    let fixture = Fixture::new()?;
    let path = fixture.file("notify");
    let manager = UnixDatagram::bind(&path)?;
    let mut command = fixture.command(&["--socket-path=fs.sock", "--shared-dir=share"]);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", PERMITTED.as_micros().to_string());
    let daemon = fixture.start_command(command)?;
    ensure!(comes(&manager, "READY=1", LIMIT)?, "{}", daemon.log());
    for _ in 0..2 {
        ensure!(comes(&manager, "WATCHDOG=1", LIMIT)?, "{}", daemon.log());
    }
    let acceptor = daemon.acceptor_pid()?;
    let acceptor = Pid::from_raw(acceptor.try_into()?).context("a process id")?;
    kill_process(acceptor, Signal::STOP)?;
    // An answer may be on its way until then.
    let end = Instant::now() + LIMIT;
    while !daemon.log().contains("the acceptor does not answer") {
        ensure!(Instant::now() < end, "{}", daemon.log());
        thread::sleep(Duration::from_millis(10));
    }
    // A stopped process answers no more than what it was asked before.
    process::wait_until_stopped(&[daemon.acceptor_pid()?])?;
    drain(&manager)?;
    ensure!(
        !comes(&manager, "WATCHDOG=1", PERMITTED)?,
        "the watchdog is told of a daemon that accepts nobody"
    );
    kill_process(acceptor, Signal::CONT)?;
    ensure!(comes(&manager, "WATCHDOG=1", LIMIT)?, "{}", daemon.log());
    // Guests are accepted.
    daemon.connect()?;
    let ended = daemon.signal(Signal::TERM)?;
    ensure!(ended.status.success(), "{ended:?}");
    ensure!(comes(&manager, "STOPPING=1", LIMIT)?);
    Ok(())
}

/// Without the service manager's wish, nothing is said beside what services always say.
#[test]
fn without_a_watchdog_it_is_not_told() -> Result<()> {
    let fixture = Fixture::new()?;
    let path = fixture.file("notify");
    let manager = UnixDatagram::bind(&path)?;
    let mut command = fixture.command(&["--socket-path=fs.sock", "--shared-dir=share"]);
    command
        .env("NOTIFY_SOCKET", &path)
        // Another process's.
        .env("WATCHDOG_USEC", "100000")
        .env("WATCHDOG_PID", "1");
    let daemon = fixture.start_command(command)?;
    ensure!(comes(&manager, "READY=1", LIMIT)?, "{}", daemon.log());
    ensure!(!comes(&manager, "WATCHDOG=1", Duration::from_millis(300))?);
    Ok(())
}

/// The main thread of each other service answers, also after it was confined.
#[test]
fn the_other_services_say_that_they_serve_and_are_alive() -> Result<()> {
    says_that_it_serves_and_is_alive(
        &tools::frontend()?,
        &["relay", "--listen", "guest.sock", "--backend", "fs.sock"],
    )?;
    says_that_it_serves_and_is_alive(&tools::dvk()?, &["serve", "--config", "rhostfs.cfg"])?;
    says_that_it_serves_and_is_alive(
        &tools::nfs()?,
        &[
            "serve",
            "--backend=fs.sock",
            "--client=*(rw)",
            "--address=10.0.2.1/24",
            "--switch-stream=stream",
        ],
    )
}

fn says_that_it_serves_and_is_alive(program: &Path, arguments: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    fs::write(dir.path().join("rhostfs.cfg"), RHOSTFS)?;
    let mut command = process::tied(program, None);
    command
        .args(arguments)
        .current_dir(dir.path())
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", PERMITTED.as_micros().to_string());
    let mut child = process::spawn(command)?;
    let told = (|| {
        ensure!(comes(&manager, "READY=1", LIMIT)?, "it is not ready");
        for _ in 0..2 {
            ensure!(comes(&manager, "WATCHDOG=1", LIMIT)?, "it is not alive");
        }
        process::signal(&child, Signal::TERM)?;
        ensure!(comes(&manager, "STOPPING=1", LIMIT)?, "it does not end");
        Ok(())
    })();
    if told.is_err() {
        process::kill_group(&mut child);
    }
    let status = process::wait_within(&mut child, LIMIT)?;
    told.with_context(|| format!("{} {arguments:?}", program.display()))?;
    ensure!(status.success(), "{status}");
    Ok(())
}
