//! The end of a daemon: by SIGTERM, or with its guest.

use std::time::Duration;

use anyhow::{Result, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options};

/// SIGTERM with a guest that writes: all acknowledged data is on the host, the socket's file is
/// gone, and the exit status is 0.
pub(crate) fn sigterm_ends_cleanly() -> Result<()> {
    let share = tempfile::tempdir()?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()))?;
    let socket = daemon.socket().to_owned();
    let mut guest = Guest::boot(&Options::new(Machine::QemuX86_64).share(&socket, TAG))?;
    guest.mount(TAG, "/mnt")?;
    guest.sh("echo synced >/mnt/synced && sync")?;
    guest.sh("(while :; do dd if=/dev/zero of=/mnt/f bs=1M count=4; done) >/dev/null 2>&1 &")?;
    std::thread::sleep(Duration::from_millis(500));
    let (status, log) = daemon.stop()?;
    ensure!(status.code() == Some(0), "{status}:\n{log}");
    ensure!(!socket.exists(), "the socket file is still there");
    ensure!(std::fs::read_to_string(share.path().join("synced"))? == "synced\n");
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

/// With `--exit-on-disconnect` the daemon ends with status 0 when its guest disconnects.
pub(crate) fn exits_with_its_guest_if_asked() -> Result<()> {
    let share = tempfile::tempdir()?;
    let mut daemon =
        Daemon::start(&daemon::Options::new(share.path()).arguments(&["--exit-on-disconnect"]))?;
    let mut guest = Guest::boot(&Options::new(Machine::QemuX86_64).share(daemon.socket(), TAG))?;
    guest.mount(TAG, "/mnt")?;
    ensure!(daemon.is_running()?, "ended too early\n{}", daemon.log());
    guest.power_off()?;
    let status = daemon.wait()?;
    ensure!(status.success(), "{status}:\n{}", daemon.log());
    Ok(())
}
