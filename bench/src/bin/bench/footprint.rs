//! What a daemon needs apart from requests: its start, idling, and knowing many files.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use gangplank_fuse::NodeId;
use serde::Serialize;
use tempfile::TempDir;

use crate::daemon_under_test::{DaemonUnderTest, Running};
use crate::device::Waiting;
use crate::placement::Processors;
use crate::score::Spread;
use crate::tree::numbered;
use crate::usage::{held, processor_ns};

/// Time for a daemon to release memory after FORGET.
const GIVING_BACK: Duration = Duration::from_secs(2);

/// The footprint of a daemon.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Footprint {
    /// The daemon's name.
    pub(crate) name: String,
    /// Milliseconds from the daemon's start to its first reply.
    pub(crate) start_up_ms: Spread,
    /// Microseconds of processor time per second without requests.
    pub(crate) idle_us: f64,
    /// Bytes of memory with a connected guest that knows no file.
    pub(crate) memory: u64,
    /// Open descriptors in the same state.
    pub(crate) descriptors: usize,
    /// Memory and descriptors with known files, for each directory.
    #[serde(rename = "crowds")]
    pub(crate) many_files: Vec<KnownFiles>,
}

/// Memory and descriptors of a daemon that knows many files.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct KnownFiles {
    /// Files in the directory.
    pub(crate) files: usize,
    /// Files that the daemon knows after looking all of them up.
    pub(crate) known: usize,
    /// Additional bytes of memory per file.
    pub(crate) bytes_each: f64,
    /// Open descriptors.
    pub(crate) descriptors: usize,
    /// Additional bytes of memory after FORGET of all files.
    pub(crate) left: u64,
    /// Open descriptors in the same state.
    pub(crate) descriptors_left: usize,
    /// Why it knows no more files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
}

/// A directory of many empty files.
pub(crate) struct ManyFiles {
    dir: TempDir,
    files: usize,
}

impl ManyFiles {
    /// Makes the directory in `parent`.
    pub(crate) fn new(parent: &Path, files: usize) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("gangplank-bench-")
            .tempdir_in(parent)?;
        for name in numbered("crowd", files) {
            let path = dir.path().join(name.to_str()?);
            File::create(&path).with_context(|| format!("making {}", path.display()))?;
        }
        Ok(Self { dir, files })
    }
}

/// Measures a daemon: `starts` starts, then idling for `idle`, then each directory of many files.
pub(crate) fn measure(
    daemon: &DaemonUnderTest,
    processors: &Processors,
    starts: usize,
    idle: Duration,
    many_files: &[ManyFiles],
) -> Result<Footprint> {
    let empty = tempfile::tempdir()?;
    let start = |share: &Path| daemon.start(share, 1, processors, false, Waiting::Asleep);
    let mut times = Vec::new();
    for _ in 0..starts {
        times.push(start(empty.path())?.start_up.as_secs_f64() * 1000.0);
    }
    let running = start(empty.path())?;
    let before = held(running.pid())?;
    let idle_us = idling(&running, idle)?;
    drop(running);
    let mut crowded = Vec::new();
    for many_files in many_files {
        let running = start(many_files.dir.path())?;
        crowded.push(crowding(running, many_files.files)?);
    }
    Ok(Footprint {
        name: daemon.name.clone(),
        start_up_ms: Spread::of(times).context("no daemon was started")?,
        idle_us,
        memory: before.memory,
        descriptors: before.descriptors,
        many_files: crowded,
    })
}

/// Microseconds of processor time per second, after a moment of work.
#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn idling(running: &Running, time: Duration) -> Result<f64> {
    // Work that a daemon does late after a request does not count.
    thread::sleep(Duration::from_millis(200));
    let before = processor_ns(running.pid())?;
    let started = Instant::now();
    thread::sleep(time);
    let used = processor_ns(running.pid())? - before;
    Ok(used as f64 / 1000.0 / started.elapsed().as_secs_f64())
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn crowding(mut running: Running, files: usize) -> Result<KnownFiles> {
    let before = held(running.pid())?;
    let device = &mut running.device;
    let mut nodes = Vec::with_capacity(files);
    let mut failed = None;
    for name in numbered("crowd", files) {
        match device.lookup(NodeId::ROOT, &name) {
            Ok(node) => nodes.push(node),
            Err(error) => {
                failed = Some(format!("{error:#}"));
                break;
            }
        }
    }
    let with = held(running.pid())?;
    for node in &nodes {
        running.device.forget(*node, 1)?;
        running.device.kick()?;
    }
    running.device.settle()?;
    let deadline = Instant::now() + GIVING_BACK;
    let mut after = held(running.pid())?;
    while after.memory > before.memory && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
        after = held(running.pid())?;
    }
    let more = with.memory.saturating_sub(before.memory) as f64;
    Ok(KnownFiles {
        files,
        known: nodes.len(),
        bytes_each: more / nodes.len().max(1) as f64,
        descriptors: with.descriptors,
        left: after.memory.saturating_sub(before.memory),
        descriptors_left: after.descriptors.saturating_sub(before.descriptors),
        failed,
    })
}
