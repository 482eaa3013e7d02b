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
const AT_LIMIT: Duration = Duration::from_secs(6);

/// By what part the time may differ.
const TOLERANCE: f64 = 0.05;

/// Measurements before a guest counts as slower than its limit: the machine may be busy.
const ATTEMPTS: u32 = 3;

/// 600 WRITEs of a byte at 100 a second.
const OPERATIONS: &str = "dd if=/dev/zero of=/mnt/small bs=1 count=600 2>/dev/null";

/// 12 MiB at 2 MiB a second, in READs of far fewer than 100 a second.
const BYTES: &str = "dd if=/mnt/large of=/dev/null bs=64k 2>/dev/null";
const LARGE: usize = 12 << 20;

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
    for attempt in 1..=ATTEMPTS {
        let (operations, bytes) = thread::scope(|scope| {
            let small = scope.spawn(|| timed(&mut small, OPERATIONS));
            let bytes = timed(&mut large, BYTES);
            let operations = small.join().map_err(|_| anyhow!("it panicked"));
            (operations.flatten(), bytes)
        });
        let times = [("operations", operations?), ("bytes", bytes?)];
        for (what, time) in times {
            note(&format!("{what}: {time:?}, {AT_LIMIT:?} at the limit"));
            let least = AT_LIMIT.mul_f64(1.0 - TOLERANCE);
            ensure!(time >= least, "{what}: {time:?} is faster than the limit");
        }
        let most = AT_LIMIT.mul_f64(1.0 + TOLERANCE);
        if times.iter().all(|(_, time)| *time <= most) {
            break;
        }
        ensure!(attempt < ATTEMPTS, "{times:?}: slower than the limits");
    }
    // A guest that is not done is not waited for.
    let begin = Instant::now();
    small.sh("(dd if=/dev/zero of=/mnt/small bs=1 count=6000 &) >/dev/null 2>&1; sleep 1")?;
    let (status, log) = daemon.stop()?;
    ensure!(status.success(), "the daemon ended with {status}:\n{log}");
    ensure!(begin.elapsed() < AT_LIMIT, "{:?}", begin.elapsed());
    Ok(())
}

fn timed(guest: &mut Guest, work: &str) -> Result<Duration> {
    let begin = Instant::now();
    guest.sh(work)?;
    Ok(begin.elapsed())
}
