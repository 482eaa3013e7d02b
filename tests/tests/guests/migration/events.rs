//! A guest that reads changes (`--events`) moves to another gangplankd.

use std::fs;

use anyhow::{Context, Result, ensure};
use gangplank_fuse::NodeId;
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::events::{Listener, RESCAN, has_that_time};
use rustix::fs::OFlags;

use super::fixture::{ROOT, connect, share};

/// The process that wakes watchers in the guest.
const WAKER: u32 = 77;

/// A READ that waits when the guest leaves ends. The reader goes on with its handle: it is told to
/// look at everything, and then of changes in the directories that the guest knows. The process
/// that wakes watchers changes nothing from the first request on, and others do.
pub(crate) fn reader_is_told_to_look_again_and_its_waker_changes_nothing() -> Result<()> {
    let share = share()?;
    let start = || Daemon::start(&Options::new(share.path()).arguments(&["--events"]));
    let (first, second) = (start()?, start()?);
    let mut driver = connect(&first)?;
    driver.init()?;
    driver.header.pid = WAKER;
    let mut listener = Listener::new(driver, OFlags::RDWR)?;
    let dir = NodeId::new(listener.driver.lookup(ROOT, c"dir")?.nodeid);
    let plain = NodeId::new(listener.driver.lookup(ROOT, c"plain")?.nodeid);
    let waiting = listener.submit()?;
    // A reply to what is behind it in the ring: the daemon has taken it.
    listener.driver.getattr(ROOT, None)?;
    let stream = listener.driver.save_state().with_context(|| first.log())?;
    let ended = listener.finish(waiting)?;
    ensure!(ended == "idle\n", "a READ when the guest leaves: {ended:?}");

    let mut driver = connect(&second)?;
    driver
        .load_state(&stream, listener.driver.dialect())
        .with_context(|| second.log())?;
    driver.header.pid = WAKER;
    listener.driver = driver;
    let path = share.path().join("plain");
    listener.set_time(plain)?;
    ensure!(!has_that_time(&path)?, "the waker changes a file's time");
    let told = listener.read().with_context(|| second.log())?;
    ensure!(told == RESCAN, "{told:?}");
    fs::write(share.path().join("dir/new"), "x")?;
    listener.read_to("created dir/new")?;
    listener.set_time(plain)?;
    ensure!(!has_that_time(&path)?, "the waker changes a file's time");
    listener.driver.getattr(dir, None)?;

    listener.driver.header.pid = WAKER + 1;
    listener.set_time(plain)?;
    ensure!(has_that_time(&path)?, "another process changes no time");
    Ok(())
}
