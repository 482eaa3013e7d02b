//! Two guests of one daemon with limits of operations and bytes a second.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use gangplank_tests::daemon::{self, Daemon, TAG};
use gangplank_tests::guest::{Guest, Machine, Options};
use gangplank_tests::runner::note;

/// The guests cache nothing, so each of their calls is one request. The bursts are small beside
/// what is measured.
const ARGUMENTS: &[&str] = &["--cache=never", "--limit-iops=100", "--limit-bps=2M"];

/// How long each guest's work takes at its limit.
const AT_LIMIT: Duration = Duration::from_secs(2);

/// 6,000 WRITEs would take a minute.
const NOT_WAITED: Duration = Duration::from_secs(30);

/// By what part the time may be shorter.
const TOLERANCE: f64 = 0.05;

/// 200 WRITEs of a byte at 100 a second.
const OPERATIONS: &str = "dd if=/dev/zero of=/mnt/small bs=1 count=200 2>/dev/null";

/// 4 MiB at 2 MiB a second, in READs of far fewer than 100 a second.
const BYTES: &str = "dd if=/mnt/large of=/dev/null bs=64k 2>/dev/null";
const LARGE: usize = 4 << 20;

/// One guest is held to its operations, and the other to its bytes.
pub(crate) fn two_guests_keep_their_limits() -> Result<()> {
    let share = tempfile::tempdir()?;
    fs::write(share.path().join("large"), vec![7; LARGE])?;
    let daemon = Daemon::start(&daemon::Options::new(share.path()).arguments(ARGUMENTS))?;
    let boot = || -> Result<Guest> {
        let mut guest = Guest::boot(&Options::new(Machine::Uml).share(daemon.socket(), TAG))?;
        guest.mount(TAG, "/mnt")?;
        Ok(guest)
    };
    let mut small = boot().with_context(|| daemon.log())?;
    let mut large = boot().with_context(|| daemon.log())?;
    let (operations, bytes) = thread::scope(|scope| {
        let small = scope.spawn(|| timed(&mut small, OPERATIONS));
        let bytes = timed(&mut large, BYTES);
        let operations = small.join().map_err(|_| anyhow!("it panicked"));
        (operations.flatten(), bytes)
    });
    // That a guest reaches its limit is tested without a guest's machine, which may be slow.
    for (what, time) in [("operations", operations?), ("bytes", bytes?)] {
        note(&format!("{what}: {time:?}, {AT_LIMIT:?} at the limit"));
        let least = AT_LIMIT.mul_f64(1.0 - TOLERANCE);
        ensure!(time >= least, "{what}: {time:?} is faster than the limit");
    }
    // A guest that is not done is not waited for.
    let begin = Instant::now();
    small.sh("(dd if=/dev/zero of=/mnt/small bs=1 count=6000 &) >/dev/null 2>&1; sleep 1")?;
    let (status, log) = daemon.stop()?;
    ensure!(status.success(), "the daemon ended with {status}:\n{log}");
    ensure!(begin.elapsed() < NOT_WAITED, "{:?}", begin.elapsed());
    Ok(())
}

fn timed(guest: &mut Guest, work: &str) -> Result<Duration> {
    let begin = Instant::now();
    guest.sh(work)?;
    Ok(begin.elapsed())
}
