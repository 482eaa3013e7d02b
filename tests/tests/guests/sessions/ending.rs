//! The end of a daemon: by a signal, with its guest, and with requests in flight.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{CopyFileRangeIn, NodeId, Operation, WriteIn};
use gangplank_tests::driver::fixture::{Fixture, wait_for_log};
use gangplank_tests::driver::{Driver, Setup};
use gangplank_tests::{process, tools};
use rustix::fs::OFlags;
use tempfile::TempDir;

/// Limit for a daemon to end.
const LIMIT: Duration = Duration::from_secs(20);

/// A daemon with its listening socket as descriptor 0.
struct Handed {
    child: Child,
    dir: TempDir,
    listener: UnixListener,
}

impl Handed {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("share"))?;
        let listener = UnixListener::bind(dir.path().join("socket"))?;
        let mut command = process::tied(tools::gangplankd()?, None);
        command
            .args(["--fd=0", "--tag=myfs"])
            .arg(format!(
                "--shared-dir={}",
                dir.path().join("share").display()
            ))
            .stdin(Stdio::from(OwnedFd::from(listener.try_clone()?)))
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("log"))?);
        let child = process::spawn(command)?;
        Ok(Self {
            child,
            dir,
            listener,
        })
    }

    fn connect(&self) -> Result<UnixStream> {
        Ok(UnixStream::connect_addr(&self.listener.local_addr()?)?)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

#[test]
fn a_daemon_on_a_handed_socket_ends_with_its_guest() -> Result<()> {
    let mut daemon = Handed::start()?;
    let mut guest =
        Driver::on_stream(daemon.connect()?, &Setup::default()).with_context(|| daemon.log())?;
    guest.init()?;
    let made = guest.create(NodeId::ROOT, c"made", 0o644)?;
    guest.write(made, 0, b"by hand")?;
    ensure!(
        daemon.child.try_wait()?.is_none(),
        "the daemon has ended before its guest"
    );
    drop(guest);
    let status = process::wait_within(&mut daemon.child, LIMIT).with_context(|| daemon.log())?;
    ensure!(status.success(), "{status}: {}", daemon.log());
    ensure!(fs::read(daemon.dir.path().join("share/made"))? == b"by hand");
    Ok(())
}

#[test]
fn a_daemon_that_is_to_end_with_its_guest_waits_for_the_last() -> Result<()> {
    let mut fixture = Fixture::quiet(&["--exit-on-disconnect"])?;
    let mut first = fixture.guest(&Setup::default())?;
    let mut second = fixture.guest(&Setup::default())?;
    first.getattr(NodeId::ROOT, None)?;
    drop(first);
    wait_for_log(&fixture.daemon, "guest 1 has gone")?;
    second
        .getattr(NodeId::ROOT, None)
        .context("with one of two gone")?;
    drop(second);
    let status = fixture.daemon.wait()?;
    ensure!(status.success(), "{status}: {}", fixture.log());
    ensure!(!fixture.socket().exists(), "the socket file is left");
    Ok(())
}

#[test]
fn told_to_end_it_finishes_what_it_has_begun() -> Result<()> {
    let fixture = Fixture::quiet(&["--locks=host"])?;
    let setup = Setup {
        ring_size: 1024,
        memory: 64 << 20,
        request_queues: 2,
        ..Setup::default()
    };
    let mut guest = fixture.guest(&setup)?;
    let file = guest.create(NodeId::ROOT, c"written", 0o644)?;
    // A request that waits without end must not delay the daemon's end.
    guest.setlk(file, 1, 1)?;
    let _waits = guest.submit_setlkw(2, file, 2, 1)?;
    let start = guest.rings[1].used_index(&guest.memory);
    let mut tickets = Vec::new();
    for index in 0..200u64 {
        let args = WriteIn {
            fh: file.file.get(),
            offset: index * 65_536,
            size: 65_536,
            ..WriteIn::default()
        };
        tickets.push(guest.submit(1, file.node, Operation::Write(args), &[7; 65_536], 64)?);
    }
    let share = fixture.share();
    let (share, socket) = (share.join("written"), fixture.socket().to_owned());
    let Fixture { daemon, .. } = fixture;
    let (status, log) = daemon.stop()?;
    ensure!(status.success(), "{status}:\n{log}");
    ensure!(!socket.exists(), "the socket file is left");
    ensure!(!log.contains("panicked"), "{log}");
    // Acknowledged requests are complete, and none is half done.
    let answered = u64::from(guest.rings[1].used_index(&guest.memory).wrapping_sub(start));
    for ticket in tickets.into_iter().take(usize::try_from(answered)?) {
        guest.finish(ticket)?;
    }
    let len = fs::metadata(&share)?.len();
    ensure!(
        len == answered * 65_536,
        "{answered} writes were answered, {len} bytes are there"
    );
    Ok(())
}

#[test]
fn guests_learn_that_the_daemon_has_ended() -> Result<()> {
    let fixture = Fixture::quiet(&[])?;
    let guest = fixture.guest(&Setup::default())?;
    let Fixture { daemon, .. } = fixture;
    let (status, log) = daemon.stop()?;
    ensure!(status.success(), "{status}:\n{log}");
    guest.peer.wait_for_hang_up()?;
    Ok(())
}

/// Requests that wait for a worker thread then are not served, and nothing of them remains.
#[test]
fn a_guest_that_goes_with_much_waiting_for_the_disk_leaves_nothing() -> Result<()> {
    const COPIED: u64 = 1 << 20;
    let mut fixture = Fixture::new(&[])?;
    let path = fixture.share().join("large");
    File::create(&path)?.set_len(COPIED)?;
    for _ in 0..3 {
        let setup = Setup {
            ring_size: 1024,
            ..Setup::default()
        };
        let mut guest = fixture.guest(&setup)?;
        let node = NodeId::new(guest.lookup(NodeId::ROOT, c"large")?.nodeid);
        let target = guest.create(NodeId::ROOT, c"copy", 0o600)?;
        let source = guest.open(node, OFlags::RDONLY)?;
        for _ in 0..200 {
            let copy = Operation::CopyFileRange(CopyFileRangeIn {
                fh_in: source.get(),
                nodeid_out: target.node.get(),
                fh_out: target.file.get(),
                len: COPIED,
                ..CopyFileRangeIn::default()
            });
            // No thread waits for the replies.
            let _unanswered = guest.submit(1, node, copy, &[], 64)?;
        }
        drop(guest);
        fixture.neighbour_goes_on()?;
        fs::remove_file(fixture.share().join("copy"))?;
    }
    fixture.survive(&[])
}
