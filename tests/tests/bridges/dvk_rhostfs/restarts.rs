//! Daemons that start late, end, and return.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gangplank_dvk::rhostfs::server::Options;
use gangplank_tests::daemon::{self, Daemon};
use rustix::io::Errno;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::Client;
use crate::fixture::{CLIENT, SERVER, Serving, dc, options, wait_until};
use crate::loopback_carrier::LoopbackCarrier;

const EIO: i32 = Errno::IO.raw_os_error();
const ESTALE: i32 = Errno::STALE.raw_os_error();

/// A server on a share with changing daemons.
struct Fixture {
    share: TempDir,
    sockets: TempDir,
    carrier: LoopbackCarrier,
    _serving: Serving,
}

impl Fixture {
    fn new() -> Result<Self> {
        let share = tempfile::tempdir()?;
        let sockets = tempfile::tempdir()?;
        let carrier = LoopbackCarrier::default();
        let options: Options = options(&sockets.path().join("fs.sock"));
        let serving = Serving::start(&carrier, &options)?;
        Ok(Self {
            share,
            sockets,
            carrier,
            _serving: serving,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.share.path().join(name)
    }

    fn client(&self) -> Client {
        Client::new(self.carrier.bind_as(dc(), CLIENT, 100), SERVER)
    }

    /// Starts the next daemon at the socket that the server uses.
    fn daemon(&self) -> Result<Daemon> {
        let daemon = Daemon::start(&daemon::Options::new(self.share.path()))?;
        let (next, name) = (
            self.sockets.path().join("next"),
            self.sockets.path().join("fs.sock"),
        );
        let target: &Path = daemon.socket();
        symlink(target, &next)?;
        fs::rename(next, name)?;
        Ok(daemon)
    }
}

#[test]
fn a_server_waits_for_its_daemon_and_its_clients_do_not() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let started = Instant::now();
    ensure!(client.lstat64("//") == Err(EIO));
    ensure!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    let _daemon = fixture.daemon()?;
    wait_until("it is served", || client.lstat64("//").is_ok())
}

#[test]
fn open_files_outlive_a_daemon_if_their_names_do() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let mut first = fixture.daemon()?;
    wait_until("it is served", || client.lstat64("//").is_ok())?;
    fs::create_dir(fixture.path("sub"))?;
    for name in ["sub/same", "other", "gone"] {
        fs::write(fixture.path(name), name)?;
    }
    let [same, other, gone] =
        ["//sub/same", "//other", "//gone"].map(|name| client.open(name, 2).unwrap());
    let made = client.create("//made", 0o600).unwrap();
    client.rename("//sub", "//moved").unwrap();
    let before = client.getdents("//", 0, 3).unwrap();
    let directory = client.opendir("//").unwrap();

    first.signal_all(Signal::KILL)?;
    first.wait()?;
    wait_until("it is noticed", || client.pread(same, 10, 0) == Err(EIO))?;
    ensure!(client.lstat64("//other") == Err(EIO));
    fs::remove_file(fixture.path("gone"))?;
    // Another inode with the same name, made while the old one exists.
    fs::write(fixture.path("replacement"), "new")?;
    fs::rename(fixture.path("replacement"), fixture.path("other"))?;

    let _second = fixture.daemon()?;
    wait_until("it is served again", || client.lstat64("//other").is_ok())?;
    ensure!(
        client.pread(same, 10, 0) == Ok(b"sub/same".to_vec()),
        "found where it is now"
    );
    ensure!(client.pwrite(made, b"still open for writing", 0) == Ok(22));
    ensure!(client.pread(other, 10, 0) == Err(ESTALE), "another file");
    ensure!(client.pread(gone, 10, 0) == Err(ESTALE));
    for handle in [same, other, gone, made] {
        ensure!(client.close(handle) == Ok(()));
    }
    ensure!(client.readdir(directory) == Err(ESTALE));
    let after = client.getdents("//", before[2].cookie, 100).unwrap();
    ensure!(
        before
            .iter()
            .all(|seen| after.iter().all(|entry| entry.name != seen.name)),
        "listing goes on where it was"
    );
    Ok(())
}

#[test]
fn a_request_that_the_daemon_dies_over_is_answered() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let mut daemon = fixture.daemon()?;
    wait_until("it is served", || client.lstat64("//").is_ok())?;
    daemon.signal_all(Signal::STOP)?;
    let asked = thread::scope(|scope| {
        let asking = scope.spawn(|| client.mkdir("//new", 0o700));
        // Either the request is with the daemon by now, or it finds the daemon dead: both are to be
        // answered.
        thread::sleep(Duration::from_millis(100));
        let killed = daemon.signal_all(Signal::KILL);
        (asking.join(), killed)
    });
    asked.1?;
    ensure!(asked.0.is_ok_and(|answer| answer == Err(EIO)));
    daemon.wait()?;
    Ok(())
}

/// The same name, and by chance the same inode number: file systems give those away again at once.
#[test]
fn a_new_file_with_an_old_ones_number_is_not_taken_for_it() -> Result<()> {
    let fixture = Fixture::new()?;
    let client = fixture.client();
    let mut first = fixture.daemon()?;
    wait_until("it is served", || client.lstat64("//").is_ok())?;
    fs::write(fixture.path("file"), "old")?;
    let number = fs::metadata(fixture.path("file"))?.ino();
    let file = client.open("//file", 2).unwrap();
    first.signal_all(Signal::KILL)?;
    first.wait()?;
    wait_until("it is noticed", || client.pread(file, 3, 0) == Err(EIO))?;
    fs::remove_file(fixture.path("file"))?;
    let has_number = |name: &Path| fs::metadata(name).is_ok_and(|made| made.ino() == number);
    for attempt in 0..200 {
        let made = fixture.path(&format!("made-{attempt}"));
        fs::write(&made, "new")?;
        if has_number(&made) {
            fs::rename(&made, fixture.path("file"))?;
            break;
        }
    }
    if !has_number(&fixture.path("file")) || fs::metadata(fixture.path("file"))?.created().is_err()
    {
        eprintln!("SKIPPED: this file system does not give inode numbers away, or knows no birth");
        return Ok(());
    }
    let _second = fixture.daemon()?;
    wait_until("it is served again", || client.lstat64("//file").is_ok())?;
    ensure!(client.pwrite(file, b"old", 0) == Err(ESTALE));
    ensure!(fs::read(fixture.path("file"))? == b"new");
    Ok(())
}
