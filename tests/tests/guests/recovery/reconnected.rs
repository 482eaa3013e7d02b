//! Only the connection of a guest is lost, and its frontend connects again with the memory for
//! requests in flight: the guest goes on where it was.

mod daemon;
mod load;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{NodeId, Operation};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::fixture::{Fixture, wait_for_log, wait_for_logs};
use gangplank_tests::driver::{Driver, NodeAndFile, Setup};
use gangplank_tests::faulty_fs::rules::{Call, Fault, Rule};
use gangplank_tests::faulty_fs::{FaultyFs, HostCache, HostWrites};
use rustix::fs::OFlags;
use rustix::io::Errno;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::device::{Device, boot, boot_with};
use super::{GETATTR, MANY};

/// `F_WRLCK`.
const WRITE_LOCK: u32 = 1;

/// Owners of locks.
const OWNER: u64 = 1;
const OTHER: u64 = 2;

type Guest = Driver<Device>;

/// Connects the guest's frontend again.
fn reconnect(guest: &mut Guest, socket: &Path) -> Result<()> {
    let connection = Device::connect(socket)?;
    resume(guest, connection)
}

/// The same on a connection that was made before.
fn resume(guest: &mut Guest, connection: Frontend) -> Result<()> {
    let Driver {
        peer,
        memory,
        rings,
        ..
    } = guest;
    peer.resume(connection, memory, rings)
}

/// What a guest has open, and what must be the same afterwards.
struct Work {
    file: NodeAndFile,
    removed: NodeAndFile,
    directory: NodeId,
    listing: gangplank_fuse::Handle,
    /// The names that the listing has told so far, and where it is.
    names: Vec<Vec<u8>>,
    offset: u64,
}

impl Work {
    /// Entries of the directory.
    const ENTRIES: usize = 200;

    fn begin(guest: &mut Guest, share: &Path) -> Result<Self> {
        let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
        guest.write(file, 0, b"content")?;
        guest.setlk(file, OWNER, WRITE_LOCK)?;
        let removed = guest.create(NodeId::ROOT, c"removed", 0o644)?;
        guest.write(removed, 0, b"without a name")?;
        guest.unlink(NodeId::ROOT, c"removed")?;
        fs::create_dir(share.join("directory"))?;
        for number in 0..Self::ENTRIES {
            fs::write(share.join(format!("directory/entry-{number:03}")), "")?;
        }
        let directory = NodeId::new(guest.lookup(NodeId::ROOT, c"directory")?.nodeid);
        let listing = guest.opendir(directory)?;
        let (names, offset) = guest.readdir(directory, listing, 0, 1024)?;
        ensure!(names.len() > 2 && names.len() < Self::ENTRIES);
        Ok(Self {
            file,
            removed,
            directory,
            listing,
            names,
            offset,
        })
    }

    /// Goes on with all of it.
    fn go_on(mut self, guest: &mut Guest) -> Result<()> {
        ensure!(guest.read(self.file, 0, 64)? == b"content");
        ensure!(guest.write(self.file, 0, b"CONTENT")? == 7);
        ensure!(guest.read(self.removed, 0, 64)? == b"without a name");
        guest.getattr(self.removed.node, Some(self.removed.file))?;
        loop {
            let (names, offset) = guest.readdir(self.directory, self.listing, self.offset, 1024)?;
            if names.is_empty() {
                break;
            }
            self.names.extend(names);
            self.offset = offset;
        }
        let told: BTreeSet<_> = self.names.iter().collect();
        ensure!(told.len() == self.names.len(), "a name was told twice");
        ensure!(told.len() >= Self::ENTRIES, "{} names", told.len());
        guest.release(self.file)?;
        guest.release(self.removed)?;
        Ok(guest.releasedir(self.directory, self.listing)?)
    }
}

/// Another guest's try to lock `file`. Returns whether it gets the lock.
fn can_lock(fixture: &Fixture) -> Result<bool> {
    let mut other = fixture.guest(&Setup::default())?;
    let node = NodeId::new(other.lookup(NodeId::ROOT, c"file")?.nodeid);
    let file = NodeAndFile {
        node,
        file: other.open(node, OFlags::RDWR)?,
    };
    match other.setlk(file, OTHER, WRITE_LOCK) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::AGAIN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn files_locks_and_listings_go_on_on_the_next_connection() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY, "--locks=host"])?;
    let mut guest = boot(fixture.socket())?;
    let work = Work::begin(&mut guest, &fixture.share())?;
    guest.peer.hang_up();
    wait_for_log(&fixture.daemon, "its session is kept")?;
    ensure!(!can_lock(&fixture)?, "the lock is lost");
    // Nobody takes it until the device has reconnected.
    let waiting = guest.submit(1, work.file.node, GETATTR, &[], 256)?;
    reconnect(&mut guest, fixture.socket()).with_context(|| fixture.log())?;
    guest.finish(waiting).with_context(|| fixture.log())?;
    ensure!(!can_lock(&fixture)?, "the lock is lost");
    work.go_on(&mut guest).with_context(|| fixture.log())?;
    ensure!(can_lock(&fixture)?, "the file was released");
    wait_for_log(&fixture.daemon, "guest 1 has reconnected")?;
    let log = fixture.log();
    ensure!(!log.contains("was served before it reconnected"), "{log}");
    // It ends in order: nothing of it is kept.
    guest.destroy()?;
    drop(guest);
    fixture.wait_until_idle()
}

/// How many descriptors of guests' memory a process has open.
fn open_memory(process: u32) -> Result<usize> {
    let links = fs::read_dir(format!("/proc/{process}/fd"))?;
    let links = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
    // The name that the driver's memory has.
    Ok(links
        .filter(|link| link.starts_with("/memfd:guest (deleted)"))
        .count())
}

#[test]
fn the_memory_of_a_guest_without_a_connection_is_closed_at_once() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY])?;
    let mut guest = boot(fixture.socket())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    let (keeper, _) = fixture.guest_processes()?.pop().context("a guest")?;
    for count in 1..=3 {
        ensure!(open_memory(keeper)? > 0);
        guest.peer.hang_up();
        wait_for_loss(&fixture, 1, count)?;
        let open = open_memory(keeper)?;
        ensure!(open == 0, "{open} descriptors");
        reconnect(&mut guest, fixture.socket()).with_context(|| fixture.log())?;
        guest.write(file, 0, b"x").with_context(|| fixture.log())?;
    }
    Ok(())
}

#[test]
fn a_request_that_waits_for_a_lock_waits_on_and_gets_it() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY, "--locks=host"])?;
    let mut holder = fixture.guest(&Setup::default())?;
    let held = holder.create(NodeId::ROOT, c"file", 0o644)?;
    holder.setlk(held, OTHER, WRITE_LOCK)?;
    let mut guest = boot(fixture.socket())?;
    let node = NodeId::new(guest.lookup(NodeId::ROOT, c"file")?.nodeid);
    let file = NodeAndFile {
        node,
        file: guest.open(node, OFlags::RDWR)?,
    };
    let ticket = guest.submit_setlkw(1, file, OWNER, WRITE_LOCK)?;
    guest.getattr(NodeId::ROOT, None)?;
    for _ in 0..3 {
        guest.peer.hang_up();
        reconnect(&mut guest, fixture.socket()).with_context(|| fixture.log())?;
        guest.getattr(NodeId::ROOT, None)?;
        ensure!(!guest.is_finished(&ticket)?, "it has not waited");
    }
    drop(holder);
    guest.finish(ticket).with_context(|| fixture.log())?;
    Ok(())
}

#[test]
fn a_request_that_the_disk_keeps_for_long_does_not_cost_the_session() -> Result<()> {
    /// Longer than a connection that is open keeps a claim to its session waiting.
    const KEPT: Duration = Duration::from_secs(5);

    let fs = FaultyFs::mount(HostCache::None, HostWrites::Through)?;
    let options = Options::new(fs.path()).arguments(&[MANY, "--keep-session=2"]);
    let daemon = Daemon::start(&options)?;
    let mut guest = boot(daemon.socket())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    let control = fs.control().clone();
    control.reset_calls();
    control.set(Rule::new(Call::Lookup, Fault::Unanswered).of("slow"));
    let lookup = Operation::Lookup { name: c"slow" };
    let slow = guest.submit(1, NodeId::ROOT, lookup, &[], 4096)?;
    let deadline = Instant::now() + super::REPLACING;
    while control.calls(Call::Lookup) == 0 {
        ensure!(Instant::now() < deadline, "{}", daemon.log());
        thread::sleep(Duration::from_millis(1));
    }
    guest.peer.hang_up();
    let begun = Instant::now();
    let answering = thread::spawn(move || {
        thread::sleep(KEPT);
        control.clear();
    });
    reconnect(&mut guest, daemon.socket()).with_context(|| daemon.log())?;
    ensure!(begun.elapsed() >= KEPT, "{}", daemon.log());
    ensure!(answering.join().is_ok());
    let found = guest.finish(slow).err().context("it has no name")?;
    ensure!(found.errno() == Some(Errno::NOENT), "{found}");
    guest.write(file, 0, b"x").with_context(|| daemon.log())?;
    wait_for_log(&daemon, "guest 1 has reconnected")
}

#[test]
fn a_stranger_with_memory_of_its_own_gets_a_session_of_its_own() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY, "--locks=host"])?;
    let mut guest = boot(fixture.socket())?;
    let work = Work::begin(&mut guest, &fixture.share())?;
    // A frontend that was served by another daemon.
    let elsewhere = Fixture::quiet(&[MANY])?;
    let mut stranger = boot(elsewhere.socket())?;
    guest.peer.hang_up();
    stranger.peer.hang_up();
    wait_for_log(&fixture.daemon, "its session is kept")?;
    reconnect(&mut stranger, fixture.socket())?;
    wait_for_log(&fixture.daemon, "was served before it reconnected")?;
    ensure!(stranger.getattr(NodeId::ROOT, None).is_err(), "not mounted");
    stranger.init()?;
    // Numbers are not secret, and lead nowhere in another session.
    ensure!(stranger.read(work.removed, 0, 64).is_err());
    ensure!(!can_lock(&fixture)?, "the lock is lost");
    reconnect(&mut guest, fixture.socket())?;
    work.go_on(&mut guest).with_context(|| fixture.log())?;
    stranger.getattr(NodeId::ROOT, None)?;
    Ok(())
}

#[test]
fn a_guest_that_has_rebooted_meanwhile_gets_a_new_session() -> Result<()> {
    for has_new_memory in [true, false] {
        let fixture = Fixture::quiet(&[MANY])?;
        let mut guest = boot(fixture.socket())?;
        let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
        // Its position in the ring is none that a new driver has.
        for _ in 0..20 {
            guest.getattr(NodeId::ROOT, None)?;
        }
        guest.peer.hang_up();
        wait_for_log(&fixture.daemon, "its session is kept")?;
        let inflight = guest.peer.inflight.take().filter(|_| !has_new_memory);
        let mut rebooted = boot_with(fixture.socket(), inflight).with_context(|| fixture.log())?;
        ensure!(rebooted.read(file, 0, 1).is_err(), "an old handle");
        rebooted.create(NodeId::ROOT, c"another", 0o644)?;
        let was_found = fixture.log().contains("has reconnected");
        ensure!(was_found != has_new_memory, "{}", fixture.log());
    }
    Ok(())
}

#[test]
fn a_connection_that_has_not_ended_keeps_its_session() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY])?;
    let mut guest = boot(fixture.socket())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    let (inflight, memory) = guest.peer.inflight.as_ref().context("memory")?;
    let mut second = Device::connect(fixture.socket())?;
    second.set_inflight_fd(inflight, memory.as_raw_fd())?;
    wait_for_log(&fixture.daemon, "whose connection is still open")?;
    guest.write(file, 0, b"x")?;
    // Only now.
    drop(second);
    guest.peer.hang_up();
    reconnect(&mut guest, fixture.socket())?;
    guest.write(file, 0, b"y").with_context(|| fixture.log())?;
    Ok(())
}

#[test]
fn a_frontend_whose_old_connection_ends_late_waits_for_its_session() -> Result<()> {
    /// Less than it waits.
    const OPEN: Duration = Duration::from_millis(1200);

    let fixture = Fixture::quiet(&[MANY, "--locks=host"])?;
    let mut guest = boot(fixture.socket())?;
    let work = Work::begin(&mut guest, &fixture.share())?;
    let old = guest.peer.take_connection().context("a connection")?;
    let begun = Instant::now();
    let ending = thread::spawn(move || {
        thread::sleep(OPEN);
        drop(old);
    });
    reconnect(&mut guest, fixture.socket()).with_context(|| fixture.log())?;
    ensure!(begun.elapsed() >= OPEN, "{}", fixture.log());
    ensure!(ending.join().is_ok());
    work.go_on(&mut guest).with_context(|| fixture.log())?;
    wait_for_log(&fixture.daemon, "guest 1 has reconnected")
}

#[test]
fn a_frontend_that_hangs_up_while_its_session_is_looked_for_has_lost_nothing() -> Result<()> {
    let fixture = Fixture::quiet(&[MANY])?;
    let mut guest = boot(fixture.socket())?;
    let file = guest.create(NodeId::ROOT, c"file", 0o644)?;
    let (inflight, memory) = guest.peer.inflight.as_ref().context("memory")?;
    let mut second = Device::connect(fixture.socket())?;
    // It does not wait for the answer.
    second.set_hdr_flags(VhostUserHeaderFlag::empty());
    second.set_inflight_fd(inflight, memory.as_raw_fd())?;
    thread::sleep(Duration::from_millis(500));
    drop(second);
    wait_for_log(&fixture.daemon, "guest 2 has gone")?;
    guest.write(file, 0, b"x")?;
    guest.peer.hang_up();
    reconnect(&mut guest, fixture.socket())?;
    guest.write(file, 0, b"y").with_context(|| fixture.log())?;
    let log = fixture.log();
    ensure!(!log.contains("was served before it reconnected"), "{log}");
    Ok(())
}

#[test]
fn files_are_closed_and_locks_released_when_the_time_is_over() -> Result<()> {
    const KEPT: Duration = Duration::from_secs(2);

    let fixture = Fixture::quiet(&[MANY, "--locks=host", "--keep-session=2"])?;
    let mut guest = boot(fixture.socket())?;
    let work = Work::begin(&mut guest, &fixture.share())?;
    let begun = Instant::now();
    guest.peer.hang_up();
    wait_for_log(&fixture.daemon, "its session is kept for 2 s")?;
    // On a busy machine, the time may be over by now.
    let is_kept = !can_lock(&fixture)? || begun.elapsed() >= KEPT;
    ensure!(is_kept, "the lock is lost");
    wait_for_log(&fixture.daemon, "has not reconnected within 2 s")?;
    ensure!(begun.elapsed() >= KEPT);
    fixture.wait_until_idle()?;
    ensure!(can_lock(&fixture)?, "the lock is kept");
    reconnect(&mut guest, fixture.socket())?;
    ensure!(guest.read(work.file, 0, 64).is_err(), "it is kept");
    wait_for_log(&fixture.daemon, "was served before it reconnected")
}

/// Waits until the daemon has noticed for the `count`th time that the guest's connection is lost.
fn wait_for_loss(fixture: &Fixture, number: usize, count: usize) -> Result<()> {
    let words = format!("guest {number} has lost its connection");
    wait_for_logs(&fixture.daemon, &words, count)
}
