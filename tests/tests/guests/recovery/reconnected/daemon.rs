//! Sessions that are kept when the daemon ends or is replaced, in whole or in part, and at its
//! limits.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::Setup;
use gangplank_tests::driver::fixture::{Fixture, acceptor_of, wait_for_log};
use gangplank_tests::process::children_named;
use gangplank_tests::service_manager::ServiceManager;
use gangplank_tests::tools;
use rustix::process::{Pid, Signal, kill_process};

use super::super::device::{Device, boot};
use super::super::{MANY, REPLACING, kill, kill_worker, wait_for_next};
use super::{Work, can_lock, reconnect, resume, wait_for_loss};

#[test]
fn kept_sessions_neither_keep_guests_out_nor_pile_up() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY, "--max-guests=2"])?;
    let mut guests = Vec::new();
    for number in 1..=3 {
        let mut guest = boot(fixture.socket()).with_context(|| fixture.log())?;
        guest.peer.hang_up();
        wait_for_loss(&fixture, number, 1)?;
        guests.push(guest);
    }
    wait_for_log(
        &fixture.daemon,
        "the session of guest 1 is not kept any longer",
    )?;
    // Each as the last guest that is permitted beside another one.
    let _other = fixture.guest(&Setup::default())?;
    for (number, guest) in (1..).zip(&mut guests).skip(1) {
        reconnect(guest, fixture.socket()).with_context(|| fixture.log())?;
        guest
            .getattr(NodeId::ROOT, None)
            .with_context(|| fixture.log())?;
        guest.peer.hang_up();
        wait_for_loss(&fixture, number, 2)?;
    }
    Ok(())
}

#[test]
fn a_frontend_that_comes_back_finds_the_session_after_a_reload_and_without_its_acceptor()
-> Result<()> {
    let fixture = Fixture::quiet(&[MANY, "--locks=host"])?;
    let mut guest = boot(fixture.socket())?;
    let work = Work::begin(&mut guest, &fixture.share())?;
    guest.peer.hang_up();
    wait_for_log(&fixture.daemon, "its session is kept")?;
    fixture.reload()?;
    ensure!(!can_lock(&fixture)?, "the lock is lost");
    reconnect(&mut guest, fixture.socket()).with_context(|| fixture.log())?;
    guest
        .getattr(work.file.node, None)
        .with_context(|| fixture.log())?;
    // The next acceptor learns of a connected guest, and of one without a connection.
    for is_connected in [true, false] {
        if !is_connected {
            guest.peer.hang_up();
            wait_for_loss(&fixture, 1, 3)?;
        }
        let acceptor = fixture.acceptor()?;
        kill(acceptor)?;
        let deadline = Instant::now() + REPLACING;
        while fixture.acceptor().ok().is_none_or(|next| next == acceptor) {
            ensure!(Instant::now() < deadline, "no acceptor: {}", fixture.log());
            thread::sleep(Duration::from_millis(2));
        }
        ensure!(!can_lock(&fixture)?, "the lock is lost");
        guest.peer.hang_up();
        reconnect(&mut guest, fixture.socket()).with_context(|| fixture.log())?;
    }
    // As an ordinary guest, it is handed over and recovers.
    let old = kill_worker(&fixture)?;
    wait_for_next(&fixture, old)?;
    fixture.reload()?;
    work.go_on(&mut guest).with_context(|| fixture.log())?;
    Ok(())
}

#[test]
fn a_frontend_that_asks_for_its_session_while_the_acceptor_dies_finds_it() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY])?;
    let mut guest = boot(fixture.socket())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    for count in 1..=5 {
        guest.peer.hang_up();
        wait_for_loss(&fixture, 1, count)?;
        let connection = Device::connect(fixture.socket())?;
        let acceptor = Pid::from_raw(fixture.acceptor()?.try_into()?).context("an acceptor")?;
        // What is asked of this one, the next one reads before anything else.
        kill_process(acceptor, Signal::STOP)?;
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            kill_process(acceptor, Signal::KILL)
        });
        resume(&mut guest, connection).with_context(|| fixture.log())?;
        ensure!(matches!(killer.join(), Ok(Ok(()))));
        guest.write(file, 0, b"x").with_context(|| fixture.log())?;
    }
    let log = fixture.log();
    ensure!(!log.contains("was served before it reconnected"), "{log}");
    Ok(())
}

#[test]
fn sigterm_ends_a_daemon_that_keeps_a_session_at_once() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY, "--keep-session=600"])?;
    let mut guest = boot(fixture.socket())?;
    guest.peer.hang_up();
    wait_for_log(&fixture.daemon, "its session is kept for 600 s")?;
    let begun = Instant::now();
    let (status, log) = fixture.daemon.stop()?;
    ensure!(status.success(), "{status}: {log}");
    // Less than it waits for requests in flight.
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(9), "{took:?}: {log}");
    Ok(())
}

#[test]
fn the_status_tells_of_a_lost_connection() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let control = directory.path().join("control");
    let option = format!("--control={}", control.display());
    let fixture = Fixture::quiet(&[MANY, &option, "--max-guests=7"])?;
    let status = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new(tools::gangplankd()?);
        let output = command
            .arg("status")
            .arg(&option)
            .args(arguments)
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let mut guest = boot(fixture.socket())?;
    ensure!(!status(&["--json"])?.contains("disconnected_ns"));
    guest.peer.hang_up();
    wait_for_log(&fixture.daemon, "its session is kept")?;
    let told = status(&[])?;
    ensure!(told.contains("0 of at most 7 guests"), "{told}");
    ensure!(told.contains("1 sessions are kept"), "{told}");
    ensure!(told.contains("connection lost"), "{told}");
    ensure!(status(&["--json"])?.contains("\"disconnected_ns\":"));
    reconnect(&mut guest, fixture.socket())?;
    guest.getattr(NodeId::ROOT, None)?;
    // The processes that had accepted the connection end meanwhile.
    let deadline = Instant::now() + REPLACING;
    while !status(&[])?.contains("1 of at most 7 guests") {
        ensure!(Instant::now() < deadline, "{}", status(&[])?);
    }
    ensure!(!status(&["--json"])?.contains("disconnected_ns"));
    Ok(())
}

#[test]
fn a_daemon_that_ends_with_its_guests_ends_at_once_when_a_connection_is_lost() -> Result<()> {
    let share = tempfile::tempdir()?;
    let options = Options::new(share.path()).arguments(&["--exit-on-disconnect"]);
    let mut daemon = Daemon::start(&options)?;
    let mut guest = boot(daemon.socket())?;
    let begun = Instant::now();
    guest.peer.hang_up();
    let status = daemon.wait()?;
    ensure!(status.success(), "{status}: {}", daemon.log());
    // Others keep a session for 10 s.
    ensure!(begun.elapsed() < Duration::from_secs(9), "{}", daemon.log());
    Ok(())
}

#[test]
fn a_session_that_is_kept_outlives_all_processes_if_a_service_manager_holds_it() -> Result<()> {
    let share = tempfile::tempdir()?;
    let manager = ServiceManager::new(4096)?;
    let arguments = ["--locks=host", "--keep-session=60", MANY];
    let options = manager.options(share.path()).arguments(&arguments);
    let mut daemon = Daemon::start(&options)?;
    wait_for_log(&daemon, "waiting for guests")?;
    let socket = daemon.socket().to_owned();
    let mut guest = boot(&socket)?;
    let work = Work::begin(&mut guest, share.path())?;
    guest.peer.hang_up();
    wait_for_log(&daemon, "its session is kept")?;
    // The keeper finds that all other processes have ended, and does the same.
    let (acceptor, keeper) = (
        acceptor_of(&daemon)?,
        children_named(daemon.pid(), "keeper_")?,
    );
    kill(daemon.pid())?;
    let deadline = Instant::now() + REPLACING;
    let lives = |process: &u32| Path::new(&format!("/proc/{process}")).exists();
    while keeper.iter().chain([&acceptor]).any(lives) {
        ensure!(Instant::now() < deadline, "{}", daemon.log());
        thread::sleep(Duration::from_millis(5));
    }
    ensure!(
        !daemon.log().contains("guest 1 has gone"),
        "{}",
        daemon.log()
    );
    manager.restart(&mut daemon, &options)?;
    reconnect(&mut guest, &socket).with_context(|| daemon.log())?;
    guest
        .getattr(work.file.node, None)
        .with_context(|| daemon.log())?;
    // The new connection is held, and nothing of the old one.
    manager.restart(&mut daemon, &options)?;
    work.go_on(&mut guest).with_context(|| daemon.log())?;
    Ok(())
}
