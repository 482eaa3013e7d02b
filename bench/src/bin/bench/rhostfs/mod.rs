//! Measures rhostfs beside virtio-fs: the same work by each route from a program to the share's
//! files.
//!
//! ```text
//!   direct         program ─────────────────────────────────────────────── files
//!   virtio-fs      program ── driver ──────────────────── vring ── daemon ─ files
//!   rhostfs-local  program ── endpoint ─ switch ─ server ─ vring ── daemon ─ files
//!   rhostfs-node   program ── endpoint ── TCP ─── server ─ vring ── daemon ─ files
//!   tunnel-…       program ── driver ── vring ─ tunnel ── as one of the two above
//!   nfs            program ── NFSv3 ──── TCP ─── gangplank-nfs ─ vring ─ daemon ─ files
//!   mount-…        program ── kernel ── mount ── as one of the two above
//! ```

mod client;
mod driver;
mod files;
mod fixture;
mod nfs;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_bench::progress::Progress;

use crate::args::Args;
use crate::score::{Round, Table, scores};
use crate::usage;
use crate::work::{Direction, Offsets, Order, Timed, Unit};
use crate::{Clock, workload};

pub(crate) use fixture::Fixture;

/// Access to one file of [`crate::tree::LARGE_LEN`] bytes.
trait FileAccess {
    /// Reads its attributes.
    fn look(&mut self) -> Result<()>;

    /// Reads from `at` until `into` is full.
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()>;

    /// Writes all of `from` at `at`.
    fn write(&mut self, at: u64, from: &[u8]) -> Result<()>;

    /// Drops cached data of the file.
    fn forget(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A route with its name, and the processes whose processor time counts beside this one's.
struct Route {
    name: &'static str,
    access: Box<dyn FileAccess>,
    processes: Vec<u32>,
}

/// A measured job.
#[derive(Clone, Copy, Debug)]
struct Job {
    name: &'static str,
    task: Task,
}

#[derive(Clone, Copy, Debug)]
enum Task {
    Look,
    Transfer(Direction, usize, Order),
}

/// The original client transfers pages; a megabyte is the limit of the protocol's copies.
const JOBS: [Job; 6] = [
    job("getattr", Task::Look),
    transfer("random-read-4k", Direction::Read, 4096, Order::Random),
    transfer("read-4k", Direction::Read, 4096, Order::Forward),
    transfer("write-4k", Direction::Write, 4096, Order::Forward),
    transfer("read-1m", Direction::Read, 1 << 20, Order::Forward),
    transfer("write-1m", Direction::Write, 1 << 20, Order::Forward),
];

const fn job(name: &'static str, task: Task) -> Job {
    Job { name, task }
}

const fn transfer(name: &'static str, direction: Direction, size: usize, order: Order) -> Job {
    job(name, Task::Transfer(direction, size, order))
}

/// Warm-up before anything counts, as a fraction (1/8) of the run's time.
const WARM_UP: u32 = 8;

/// Title of the tables.
pub(crate) const TITLE: &str =
    "rhostfs beside virtio-fs, one operation after another, all processes on all processors";

/// Measures every chosen job by every route of `fixture`, in turn.
pub(crate) fn tables(fixture: &mut Fixture, args: &Args) -> Result<Vec<Table>> {
    let is_known = |name: &str| JOBS.iter().any(|job| job.name == name);
    let asked = JOBS.iter().filter(|job| args.names(job.name, is_known));
    let progress = Progress::of(asked.clone().count());
    let measure = |job: &Job| {
        progress.begin(&format!("bench: {} (rhostfs)", job.name));
        let measured = table(fixture.routes(), job, args.rounds(), args.time());
        progress.done();
        measured
    };
    asked.map(measure).collect()
}

fn table(routes: &mut [Route], job: &Job, count: usize, time: Duration) -> Result<Table> {
    let mut rounds: Vec<(String, Vec<Round>)> = routes
        .iter()
        .map(|route| (route.name.to_owned(), Vec::new()))
        .collect();
    for round in 0..count {
        for turn in 0..routes.len() {
            let at = (round + turn) % routes.len();
            let (Some(route), Some((name, rounds))) = (routes.get_mut(at), rounds.get_mut(at))
            else {
                continue;
            };
            let measured = measure(route, job.task, time);
            rounds.push(measured.with_context(|| format!("{} by {name}", job.name))?);
        }
    }
    let unit = match job.task {
        Task::Look => Unit::Operations,
        Task::Transfer(_, size, _) => Unit::Bytes(size),
    };
    Ok(Table {
        workload: job.name,
        placement: "rhostfs",
        depth: 1,
        queues: 1,
        unit: unit.name(),
        scores: scores(&rounds, unit),
    })
}

fn measure(route: &mut Route, task: Task, time: Duration) -> Result<Round> {
    let processes = route.processes.clone();
    let mut clock = Clock::new(|| {
        let others = processes.iter().map(|pid| usage::processor_ns(*pid));
        others
            .chain([usage::whole_processor_ns()])
            .sum::<Result<u64>>()
    });
    let access = &mut *route.access;
    repeat(access, task, time / WARM_UP, &mut || Ok(()))?;
    let run = repeat(access, task, time, &mut || clock.look())?;
    clock.round(run)
}

fn repeat(
    access: &mut dyn FileAccess,
    task: Task,
    time: Duration,
    at: &mut dyn FnMut() -> Result<()>,
) -> Result<workload::Run> {
    access.forget()?;
    let timed = Timed { time, at };
    let Task::Transfer(direction, size, order) = task else {
        return timed.repeat(1, || access.look().map(|()| true));
    };
    let mut buffer = vec![0x5a; size];
    let mut offsets = Offsets::new(size, order);
    timed.repeat(1, || {
        let at = offsets.next();
        if at == 0 {
            access.forget()?;
        }
        match direction {
            Direction::Read => access.read(at, &mut buffer)?,
            Direction::Write => access.write(at, &buffer)?,
        }
        Ok(true)
    })
}

/// Fails unless all `size` bytes were moved.
fn whole(moved: usize, size: usize) -> Result<()> {
    ensure!(moved == size, "{moved} of {size} bytes moved");
    Ok(())
}

/// A path as text.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
