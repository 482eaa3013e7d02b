//! A server or daemon that ends causes an error within the limit, and is found again after a
//! restart.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_tests::dvk::Server;
use gangplank_tests::packages;
use rustix::process::Signal;

use crate::Fixture;

/// The mount's limit is 5 s; an operation may be several calls, and the machine busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(25);

/// Limit until everything is connected again.
const RECOVERY: Duration = Duration::from_secs(40);

/// A killed server starts again: open files continue, and files that were removed meanwhile are
/// stale.
pub(crate) fn a_restarted_server_is_found_again(fixture: &mut Fixture) -> Result<()> {
    let mut kept = fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(fixture.here("kept"))?;
    let removed = fs::File::create(fixture.here("removed"))?;
    kept.write_all(b"before ")?;
    fixture.server = None;
    fails_in_time(&fixture.here("kept"))?;
    fs::remove_file(fixture.there("removed"))?;
    fixture.server = Some(Server::start(&fixture.topology, fixture.daemon.socket())?);
    recovers(&fixture.here("kept"))?;
    kept.write_all(b"and after")?;
    ensure!(fs::read(fixture.there("kept"))? == b"before and after");
    ensure!(removed.write_all_at(b"x", 0).is_err());
    fs::write(fixture.here("new"), "as ever")?;
    Ok(())
}

/// The first file that the new server opens is not taken for the first file of the old one.
pub(crate) fn a_restarted_server_takes_no_file_for_another(fixture: &mut Fixture) -> Result<()> {
    let first = fs::File::create(fixture.here("first"))?;
    first.write_all_at(b"first", 0)?;
    fs::write(fixture.there("second"), "second")?;
    fixture.server = None;
    fixture.server = Some(Server::start(&fixture.topology, fixture.daemon.socket())?);
    recovers(&fixture.here("second"))?;
    let second = fs::File::options()
        .write(true)
        .open(fixture.here("second"))?;
    first.write_all_at(b"FIRST", 0)?;
    second.write_all_at(b"SECOND", 0)?;
    ensure!(fs::read(fixture.there("first"))? == b"FIRST");
    ensure!(fs::read(fixture.there("second"))? == b"SECOND");
    Ok(())
}

/// A server that is stopped by a signal: no program waits longer than the limit, and late replies
/// do no harm.
pub(crate) fn a_server_that_hangs_costs_its_limit(fixture: &mut Fixture) -> Result<()> {
    for name in ["one", "two"] {
        fs::write(fixture.there(name), name)?;
    }
    let server = fixture.server.as_ref().context("there is a server")?;
    server.signal(Signal::STOP)?;
    fails_in_time(&fixture.here("one"))?;
    fails_in_time(&fixture.here("two"))?;
    server.signal(Signal::CONT)?;
    recovers(&fixture.here("one"))?;
    for name in ["one", "two"] {
        ensure!(fs::read_to_string(fixture.here(name))? == name);
    }
    Ok(())
}

/// The daemon behind the server is replaced: the mount returns errors meanwhile, and open files
/// continue.
pub(crate) fn a_restarted_daemon_is_found_again(fixture: &mut Fixture) -> Result<()> {
    fs::write(fixture.there("file"), "content")?;
    let mut file = fs::File::open(fixture.here("file"))?;
    fixture.daemon.signal_all(Signal::KILL)?;
    fixture.daemon.wait()?;
    fails_in_time(&fixture.here("file"))?;
    // Each daemon's socket is in a directory of its own here, so the new one is moved to the old
    // path.
    let replacement = gangplank_tests::daemon::Daemon::start(
        &gangplank_tests::daemon::Options::new(&fixture.there("")),
    )?;
    let old = fixture.daemon.socket();
    let _ = fs::remove_file(old);
    std::os::unix::fs::symlink(replacement.socket(), old)?;
    recovers(&fixture.here("file"))?;
    let mut content = String::new();
    file.read_to_string(&mut content)?;
    ensure!(content == "content");
    fs::remove_file(fixture.daemon.socket())?;
    Ok(())
}

/// umount(8) works with and without a server.
pub(crate) fn a_mount_without_a_server_unmounts(fixture: &mut Fixture) -> Result<()> {
    fs::write(fixture.here("file"), "content")?;
    fixture.server = None;
    let started = Instant::now();
    packages::run(std::process::Command::new("umount").arg(fixture.mount.point()))?;
    fixture.mount.ended()?;
    ensure!(started.elapsed() < LIMIT, "it took {:?}", started.elapsed());
    ensure!(!fixture.mount.is_mounted()?);
    Ok(())
}

/// SIGTERM unmounts while a program has a file open.
pub(crate) fn a_mount_in_use_ends_when_told(fixture: &mut Fixture) -> Result<()> {
    let file = fs::File::create(fixture.here("file"))?;
    fixture.mount.end()?;
    ensure!(file.write_all_at(b"x", 0).is_err());
    ensure!(!fixture.mount.is_mounted()?);
    Ok(())
}

/// Fails unless stat of `path` is an error within the limit.
pub(crate) fn fails_in_time(path: &Path) -> Result<()> {
    let started = Instant::now();
    let seen = fs::metadata(path);
    let took = started.elapsed();
    ensure!(
        seen.is_err(),
        "{} was seen without a server",
        path.display()
    );
    ensure!(took < LIMIT, "it took {took:?}");
    Ok(())
}

/// Waits until stat of `path` works again.
pub(crate) fn recovers(path: &Path) -> Result<()> {
    let deadline = Instant::now() + RECOVERY;
    loop {
        match fs::metadata(path) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context("it was not found again");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
