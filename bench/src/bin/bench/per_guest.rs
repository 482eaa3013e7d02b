//! What each guest of a daemon costs: memory, the time until it is served, and many guests at once.

use std::collections::BTreeSet;
use std::path::Path;
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::process::with_descendants;
use gangplank_vhost_user::client::{Backend, Socket};
use serde::Serialize;

use crate::daemon_under_test::{DaemonUnderTest, Running};
use crate::device::{Device, Waiting, connect};
use crate::placement::Processors;
use crate::score::Spread;
use crate::usage::private_bytes;
use crate::work::{CATALOGUE, Entry};
use crate::workload::drive;

/// Guests on one daemon.
const MANY: usize = 64;

/// Work that a daemon does late after the first reply does not count.
const SETTLING: Duration = Duration::from_millis(300);

/// Limit for a daemon with a guest to answer a second one. Daemons that serve one guest do not
/// accept.
const SECOND_GUEST: Duration = Duration::from_millis(500);

/// Limit for the processes of a guest that has left to end.
const LEAVING: Duration = Duration::from_secs(10);

/// What a guest costs a daemon.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct PerGuest {
    /// The daemon's name.
    pub(crate) name: String,
    /// Processes that an idle guest has of its own. For a daemon of one guest, all of them.
    pub(crate) processes: usize,
    /// Bytes of memory that no other process shares, in all of these processes.
    pub(crate) private: u64,
    /// Milliseconds from connect(2) to the first reply.
    pub(crate) first_reply_ms: Spread,
    /// All guests that the daemon serves at once.
    pub(crate) at_once: AtOnce,
}

/// Guests of one daemon at the same time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct AtOnce {
    /// The guests: [`MANY`], or one.
    pub(crate) guests: usize,
    /// Bytes of memory of each idle guest's processes that no other process shares.
    pub(crate) private_each: u64,
    /// Replies to GETATTR per second while each guest has one request in flight: all guests.
    pub(crate) getattr_rate: f64,
    /// The same of the guest with the fewest replies.
    pub(crate) least_rate: f64,
    /// The same of the guest with the most replies.
    pub(crate) most_rate: f64,
}

/// Measures a daemon that shares `share`: `connections` connections, and [`MANY`] guests for
/// `time`.
pub(crate) fn measure(
    daemon: &DaemonUnderTest,
    processors: &Processors,
    share: &Path,
    connections: usize,
    time: Duration,
) -> Result<PerGuest> {
    let start = || daemon.start(share, 1, processors, false, Waiting::Asleep);
    let running = start()?;
    if !serves_another(&running) {
        drop(running);
        return of_one_guest(&daemon.name, start, share, connections, time);
    }
    let idle = processes(&running);
    let mut times = Vec::new();
    for _ in 0..connections {
        let started = Instant::now();
        let device = Device::open(running.socket(), 1, Waiting::Asleep)?;
        times.push(milliseconds(started.elapsed()));
        drop(device);
        wait_until_left(&running, &idle)?;
    }
    let guest = Device::open(running.socket(), 1, Waiting::Asleep)?;
    thread::sleep(SETTLING);
    let own: Vec<u32> = processes(&running).difference(&idle).copied().collect();
    let private = private_bytes(&own)?;
    drop(guest);
    wait_until_left(&running, &idle)?;
    let mut guests = (0..MANY)
        .map(|_| Device::open(running.socket(), 1, Waiting::Asleep))
        .collect::<Result<Vec<_>>>()?;
    thread::sleep(SETTLING);
    let all: Vec<u32> = processes(&running).difference(&idle).copied().collect();
    Ok(PerGuest {
        name: daemon.name.clone(),
        processes: own.len(),
        private,
        first_reply_ms: Spread::of(times).context("no guest has connected")?,
        at_once: at_once(&mut guests, &all, share, time)?,
    })
}

/// A daemon that ends with its guest: each guest has a daemon of its own.
fn of_one_guest(
    name: &str,
    start: impl Fn() -> Result<Running>,
    share: &Path,
    connections: usize,
    time: Duration,
) -> Result<PerGuest> {
    let mut times = Vec::new();
    for _ in 0..connections {
        times.push(milliseconds(start()?.first_reply));
    }
    let mut running = start()?;
    thread::sleep(SETTLING);
    let own = with_descendants(running.pid());
    Ok(PerGuest {
        name: name.to_owned(),
        processes: own.len(),
        private: private_bytes(&own)?,
        first_reply_ms: Spread::of(times).context("no guest has connected")?,
        at_once: at_once(slice::from_mut(&mut running.device), &own, share, time)?,
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn processes(running: &Running) -> BTreeSet<u32> {
    with_descendants(running.pid()).into_iter().collect()
}

fn serves_another(running: &Running) -> bool {
    let Ok(stream) = connect(running.socket()) else {
        return false;
    };
    let messages = Socket::from_stream(stream, running.socket(), SECOND_GUEST);
    let serves = Backend::negotiate(messages).is_ok();
    // The second guest's processes end before anything is measured.
    thread::sleep(SETTLING);
    serves
}

fn wait_until_left(running: &Running, idle: &BTreeSet<u32>) -> Result<()> {
    let end = Instant::now() + LEAVING;
    while processes(running) != *idle {
        ensure!(
            Instant::now() < end,
            "the daemon keeps the processes of a guest that has left"
        );
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Measures idle `guests`, whose processes are `own`, then lets each ask for `time`.
fn at_once(guests: &mut [Device], own: &[u32], share: &Path, time: Duration) -> Result<AtOnce> {
    let count = guests.len();
    let private_each = private_bytes(own)? / count.max(1) as u64;
    let entry = CATALOGUE.iter().find(|entry| entry.name == "getattr");
    let entry: &Entry = entry.context("there is no workload getattr")?;
    let rates = thread::scope(|scope| {
        let running = guests.iter_mut().map(|device| {
            scope.spawn(move || {
                let mut workload = entry.workload(share);
                let run = drive(device, &mut *workload, 1, time, || Ok(()))?;
                #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
                Ok(run.units as f64 / run.seconds)
            })
        });
        let running: Vec<_> = running.collect();
        let joined = running.into_iter().map(|guest| match guest.join() {
            Ok(rate) => rate,
            Err(_) => bail!("a guest's thread panicked"),
        });
        joined.collect::<Result<Vec<f64>>>()
    })?;
    let spread = Spread::of(rates.iter().copied()).context("no guest was served")?;
    Ok(AtOnce {
        guests: count,
        private_each,
        getattr_rate: rates.iter().sum(),
        least_rate: spread.min,
        most_rate: spread.max,
    })
}
