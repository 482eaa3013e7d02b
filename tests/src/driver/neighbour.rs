//! Another guest of the same daemon, which works all the time and must not notice misbehaving
//! guests.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gangplank_fuse::NodeId;
use rustix::io::Errno;

use super::{Driver, Setup};

/// Limit of one round. A longer one counts as disturbed. The daemon itself waits 10 s and longer
/// for some processes, and never for one guest on behalf of another.
const ROUND_LIMIT: Duration = Duration::from_secs(9);

/// A thread with a guest of its own that writes, reads back and compares.
pub struct Neighbour {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    rounds: AtomicU64,
}

impl Neighbour {
    /// Mounts and starts to work in its own directory `name`. Returns after the first round.
    ///
    /// # Errors
    /// It cannot mount, or its first round fails.
    pub fn start(socket: &Path, name: &str) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (socket, theirs, name) = (
            PathBuf::from(socket),
            Arc::clone(&shared),
            CString::new(name)?,
        );
        let thread = thread::Builder::new()
            .name("neighbour".into())
            .spawn(move || work(&socket, &name, &theirs))?;
        let mut neighbour = Self {
            shared,
            thread: Some(thread),
        };
        neighbour.wait_for_rounds(1)?;
        Ok(neighbour)
    }

    /// Rounds done so far.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.shared.rounds.load(Ordering::Relaxed)
    }

    /// Waits until `count` more rounds are done.
    ///
    /// # Errors
    /// One of them failed or takes too long.
    pub fn wait_for_rounds(&mut self, count: u64) -> Result<()> {
        let wanted = self.rounds() + count;
        let mut last = (self.rounds(), Instant::now());
        while self.rounds() < wanted {
            if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                self.join()?;
                bail!("the neighbour ended by itself");
            }
            if self.rounds() != last.0 {
                last = (self.rounds(), Instant::now());
            }
            ensure!(
                last.1.elapsed() < ROUND_LIMIT,
                "the neighbour's round {} has taken longer than {ROUND_LIMIT:?}",
                last.0
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends the work; returns how many rounds were done.
    ///
    /// # Errors
    /// What went wrong in any of them.
    pub fn stop(mut self) -> Result<u64> {
        self.join()?;
        Ok(self.rounds())
    }

    fn join(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        match thread.join() {
            Ok(result) => result.context("the neighbour was disturbed"),
            Err(_) => bail!("the neighbour panicked"),
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A test that fails already says why.
            let _ = thread.join();
        }
    }
}

fn work(socket: &Path, name: &std::ffi::CStr, shared: &Shared) -> Result<()> {
    let setup = Setup {
        indirect: true,
        event_idx: true,
        ..Setup::default()
    };
    let mut guest = Driver::mount(socket, &setup).context("mounting")?;
    let home = NodeId::new(
        guest
            .mkdir(NodeId::ROOT, name)
            .context("making its directory")?
            .nodeid,
    );
    while !shared.stop.load(Ordering::Relaxed) {
        let number = shared.rounds.load(Ordering::Relaxed);
        round(&mut guest, home, number).with_context(|| format!("round {number}"))?;
        shared.rounds.fetch_add(1, Ordering::Relaxed);
    }
    guest
        .rmdir(NodeId::ROOT, name)
        .context("removing its directory")?;
    Ok(())
}

/// Creates, writes, reads back, renames, looks up, removes.
fn round(guest: &mut Driver, home: NodeId, number: u64) -> Result<()> {
    let pattern: Vec<u8> = (number..)
        .flat_map(u64::to_le_bytes)
        .take(64 * 1024)
        .collect();
    let file = guest.create(home, c"work", 0o644).context("CREATE")?;
    let written = guest
        .write(file, number % 4096, &pattern)
        .context("WRITE")?;
    ensure!(
        to_usize(written) == pattern.len(),
        "WRITE took {written} bytes"
    );
    let found = guest.read(file, number % 4096, written).context("READ")?;
    ensure!(found == pattern, "READ gave other bytes than were written");
    guest
        .rename((home, c"work"), (home, c"done"), 0)
        .context("RENAME2")?;
    let entry = guest.lookup(home, c"done").context("LOOKUP")?;
    ensure!(entry.nodeid == file.node.get(), "LOOKUP found another node");
    let size = guest
        .getattr(file.node, Some(file.file))
        .context("GETATTR")?
        .attr
        .size;
    ensure!(
        size == number % 4096 + pattern.len() as u64,
        "GETATTR tells a size of {size}"
    );
    guest.release(file).context("RELEASE")?;
    guest.unlink(home, c"done").context("UNLINK")?;
    // A removed name is either an error or a negative entry.
    match guest.lookup(home, c"done") {
        Ok(entry) => ensure!(entry.nodeid == 0, "LOOKUP found a removed file"),
        Err(error) => ensure!(error.errno() == Some(Errno::NOENT), "LOOKUP: {error}"),
    }
    guest.forget(file.node, 2).context("FORGET")?;
    Ok(())
}

fn to_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
