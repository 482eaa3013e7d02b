//! Changes that guests hear of (`--events`): waiting, interrupting, other guests, a killed worker.

use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::{Handle, NodeId};
use gangplank_tests::driver::events::{LIMIT, Listener, RESCAN, has_that_time};
use gangplank_tests::driver::fixture::Fixture;
use gangplank_tests::driver::{NodeAndFile, Setup};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// A guest of the fixture that reads changes.
fn reader(fixture: &Fixture) -> Result<Listener> {
    Listener::new(fixture.guest(&Setup::default())?, OFlags::RDONLY)
}

fn fixture() -> Result<Fixture> {
    Fixture::new(&["--events"])
}

#[test]
fn what_the_host_and_other_guests_do_is_told_and_what_the_guest_does_is_not() -> Result<()> {
    for sandbox in ["--sandbox=namespace", "--sandbox=none"] {
        others_are_told(Fixture::new(&["--events", sandbox])?).context(sandbox)?;
    }
    Ok(())
}

fn others_are_told(fixture: Fixture) -> Result<()> {
    let mut listener = reader(&fixture)?;
    let dir = fixture.share().join("d");
    fs::create_dir(&dir)?;
    listener.read_to("created d/")?;

    // Only of directories that the guest knows.
    fs::write(dir.join("unknown"), "x")?;
    let node = listener.driver.lookup(NodeId::ROOT, c"d")?.nodeid;
    let own = listener.driver.create(NodeId::new(node), c"own", 0o644)?;
    listener.driver.write(own, 0, b"own")?;
    fs::write(dir.join("a b"), "x")?;
    fs::rename(dir.join("a b"), dir.join("c"))?;
    fs::remove_file(dir.join("c"))?;
    // A file without a name is nobody's business, and one that is called as the kernel calls it is.
    let flags = OFlags::TMPFILE | OFlags::WRONLY;
    let unnamed = rustix::fs::open(&dir, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::io::write(&unnamed, b"x")?;
    fs::write(dir.join("#7"), "x")?;
    let mut other = fixture.guest(&Setup::default())?;
    let node = NodeId::new(other.lookup(NodeId::ROOT, c"d")?.nodeid);
    let made = other.create(node, c"other", 0o644)?;
    other.write(made, 0, b"other")?;
    other.create(NodeId::ROOT, c"end", 0o644)?;
    let lines = listener.read_to("created end")?;
    for wanted in [
        "deleted d/a\\x20b",
        "deleted d/c",
        "created d/#7",
        "created d/other",
        "modified d/other",
    ] {
        ensure!(
            lines.iter().any(|line| line == wanted),
            "no '{wanted}': {lines:?}"
        );
    }
    let wrong = lines
        .iter()
        .find(|line| line.contains("own") || (line.contains('#') && !line.ends_with("d/#7")));
    ensure!(wrong.is_none(), "the guest was told: {wrong:?}");
    drop((other, listener));
    fixture.survive(&[])
}

#[test]
fn a_read_waits_without_a_ring_and_ends_when_it_is_interrupted() -> Result<()> {
    let fixture = fixture()?;
    let mut listener = reader(&fixture)?;
    // One that ends by itself must not count as interrupted.
    let mut outcome = None;
    for _ in 0..20 {
        let tickets = [listener.submit()?, listener.submit()?];
        for _ in 0..20 {
            listener.driver.getattr(NodeId::ROOT, None)?;
        }
        listener.driver.interrupt(tickets[0].unique)?;
        let error = listener.driver.finish_within(tickets[0], LIMIT).err();
        let rest = listener.finish(tickets[1])?;
        ensure!(rest == "idle\n", "{rest:?}");
        outcome = error.and_then(|error| error.errno());
        if outcome.is_some() {
            break;
        }
    }
    ensure!(outcome == Some(Errno::INTR), "{outcome:?}");

    let ticket = listener.submit()?;
    listener.driver.destroy()?;
    let ended = listener.driver.finish_within(ticket, LIMIT).err();
    let ended = ended.and_then(|error| error.errno());
    ensure!(ended == Some(Errno::INTR), "after DESTROY: {ended:?}");
    drop(listener);

    let mut hanging = reader(&fixture)?;
    let _ = hanging.submit()?;
    drop(hanging);
    fixture.survive(&[])
}

#[test]
fn a_reader_whose_worker_dies_is_told_to_look_again() -> Result<()> {
    let fixture = Fixture::quiet(&["--events"])?;
    let mut listener = reader(&fixture)?;
    let ticket = listener.submit()?;
    let worker = Pid::from_raw(fixture.last_worker()?.try_into()?).context("a process")?;
    kill_process(worker, Signal::KILL)?;
    let read = listener.finish(ticket)?;
    // Unless the READ had just ended by itself.
    let read = if read == "idle\n" {
        listener.read()?
    } else {
        read
    };
    ensure!(read == RESCAN, "{read:?}");
    fs::write(fixture.share().join("after"), "x")?;
    listener.read_to("created after")?;
    drop(listener);
    fixture.survive(&["the worker of guest"])
}

/// The next program's worker knows the reader and the waker, whose requests change nothing at once.
#[test]
fn a_reload_is_a_rescan_and_the_waker_still_changes_nothing() -> Result<()> {
    let fixture = Fixture::quiet(&["--events"])?;
    let path = fixture.share().join("f");
    fs::write(&path, "content")?;
    let mut driver = fixture.guest(&Setup::default())?;
    driver.header.pid = 77;
    let mut listener = Listener::new(driver, OFlags::RDWR)?;
    let node = NodeId::new(listener.driver.lookup(NodeId::ROOT, c"f")?.nodeid);
    let ticket = listener.submit()?;
    fixture.reload()?;
    listener.set_time(node)?;
    ensure!(!has_that_time(&path)?, "the waker changes a file's time");
    let mut read = listener.finish(ticket)?;
    if read == "idle\n" {
        read = listener.read()?;
    }
    ensure!(read == RESCAN, "{read:?}");
    fs::write(fixture.share().join("after"), "x")?;
    listener.read_to("created after")?;
    drop(listener);
    fixture.survive(&[])
}

#[test]
fn lost_changes_are_a_rescan_and_the_guest_is_served_meanwhile() -> Result<()> {
    let fixture = fixture()?;
    let mut listener = reader(&fixture)?;
    // The reader is slow: it reads nothing before all is done.
    for number in 0..20_000 {
        fs::write(fixture.share().join(format!("f{number}")), "x")?;
        if number % 1000 == 0 {
            listener.driver.getattr(NodeId::ROOT, None)?;
        }
    }
    listener.read_to("rescan")?;
    fs::write(fixture.share().join("end"), "x")?;
    listener.read_to("created end")?;
    drop(listener);
    fixture.survive(&[])
}

#[test]
fn the_waker_changes_nothing() -> Result<()> {
    let fixture = fixture()?;
    let mut listener = reader(&fixture)?;
    let driver = &mut listener.driver;
    driver.header.pid = 77;
    let path = fixture.share().join("f");
    fs::write(&path, "content")?;
    let node = NodeId::new(driver.lookup(NodeId::ROOT, c"f")?.nodeid);
    let waker = NodeAndFile {
        node: listener.file.node,
        file: driver.open(listener.file.node, OFlags::RDWR)?,
    };
    let busy = driver.open(waker.node, OFlags::RDWR).err();
    let busy = busy.and_then(|error| error.errno());
    ensure!(busy == Some(Errno::BUSY), "a second waker: {busy:?}");

    let before = fs::metadata(&path)?;
    let mut times = gangplank_fuse::SetattrIn {
        valid: gangplank_fuse::SetattrValid::MTIME.bits(),
        mtime: 1,
        ..Default::default()
    };
    driver.setattr(node, times)?;
    times.valid = gangplank_fuse::SetattrValid::SIZE.bits();
    ensure!(driver.setattr(node, times).is_err(), "the waker truncates");
    let file = driver.open(node, OFlags::WRONLY | OFlags::TRUNC)?;
    ensure!(
        driver.write(NodeAndFile { node, file }, 0, b"x").is_err(),
        "the waker writes"
    );
    ensure!(
        driver.unlink(NodeId::ROOT, c"f").is_err(),
        "the waker removes"
    );

    driver.write(waker, 0, b"nothing")?;
    let free = driver.lookup(NodeId::ROOT, c"f");
    ensure!(
        free.is_err() || free.is_ok_and(|entry| entry.nodeid == 0),
        "the name is not free"
    );
    ensure!(
        driver.create(NodeId::ROOT, c"g", 0o644).is_err(),
        "the waker creates"
    );
    driver.write(waker, 0, b"removed")?;
    let gone = driver.lookup(NodeId::ROOT, c"gone")?;
    ensure!(gone.nodeid != 0, "the name that is gone cannot be removed");
    driver.unlink(NodeId::ROOT, c"gone")?;
    let wrong = driver.write(waker, 0, b"rubbish").err();
    let wrong = wrong.and_then(|error| error.errno());
    ensure!(
        wrong == Some(Errno::INVAL),
        "a view that there is not: {wrong:?}"
    );
    let after = fs::metadata(&path)?;
    ensure!(fs::read(&path)? == b"content", "the content has changed");
    let same = std::os::unix::fs::MetadataExt::ctime_nsec(&before)
        == std::os::unix::fs::MetadataExt::ctime_nsec(&after);
    ensure!(same, "the attributes have changed");

    // Without it, the process is like any other.
    driver.release(waker)?;
    driver.unlink(NodeId::ROOT, c"f")?;
    ensure!(!path.exists(), "the guest cannot remove a file");
    drop(listener);
    fixture.survive(&[])
}

#[test]
fn only_guests_that_may_hear_find_the_file_and_no_listing_has_it() -> Result<()> {
    let fixture = fixture()?;
    fs::create_dir(fixture.share().join(".gangplank"))?;
    fs::write(fixture.share().join(".gangplank/host"), "x")?;
    let mut driver = fixture.guest(&Setup::default())?;
    let handle = driver.opendir(NodeId::ROOT)?;
    let (names, _) = driver.readdirplus(NodeId::ROOT, handle, 0, 32 * 1024)?;
    let listed = names.iter().any(|(name, _)| name == b".gangplank");
    ensure!(!listed, "the directory is listed");
    let directory = NodeId::new(driver.lookup(NodeId::ROOT, c".gangplank")?.nodeid);
    ensure!(
        driver.lookup(directory, c"host").is_err(),
        "the host's directory is seen"
    );
    let refused = driver.mkdir(NodeId::ROOT, c".gangplank").err();
    let refused = refused.and_then(|error| error.errno());
    ensure!(
        refused == Some(Errno::PERM),
        "the name can be made: {refused:?}"
    );
    let node = NodeId::new(driver.lookup(directory, c"events")?.nodeid);
    let unknown = driver.read(
        NodeAndFile {
            node,
            file: Handle::new(7),
        },
        0,
        4,
    );
    let unknown = unknown.err().and_then(|error| error.errno());
    ensure!(
        unknown == Some(Errno::INVAL),
        "READ of 4 bytes: {unknown:?}"
    );
    driver.forget(node, 1)?;
    drop(driver);
    fixture.survive(&[])?;

    let fixture = Fixture::quiet(&[])?;
    let mut driver = fixture.guest(&Setup::default())?;
    let found = driver.lookup(NodeId::ROOT, c".gangplank");
    ensure!(
        found.map_or(true, |entry| entry.nodeid == 0),
        "found without --events"
    );
    drop(driver);
    fixture.survive(&[])
}
