//! `scripts/bench`: measures virtio-fs daemons side by side, without a guest, and rhostfs beside
//! them.
//!
//! ```text
//!   daemons: direct, gangplankd, virtiofsd, ...     each with its own share, all of them running
//!   for each workload:  rounds of direct, A, B, C; A, B, C, direct; ...
//! ```
//!
//! A disturbance of the machine so affects all daemons. The ratios within a round are more exact
//! than the rates.
#![allow(clippy::print_stdout, reason = "a program for the console")]

mod args;
mod bench_queue;
mod daemon_under_test;
mod device;
mod footprint;
mod memory;
mod metrics_reader;
mod per_guest;
mod placement;
mod report;
mod rhostfs;
mod score;
mod tree;
mod usage;
mod work;
mod workload;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;
use std::{env, io};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use gangplank_bench::progress::Progress;
use gangplank_tests::cache;
use gangplank_tests::process::User;

use args::Args;
use daemon_under_test::{DaemonUnderTest, Running};
use footprint::{Footprint, ManyFiles};
use per_guest::PerGuest;
use placement::{PLACEMENTS, Placement, Processors};
use report::{Part, Report};
use score::{DIRECT, Round, Table, scores};
use tree::Tree;
use work::{Entry, Medium};

/// Numbers of files for the footprint: in a whole run, and in a quick one.
const MANY_FILES_COUNTS: [usize; 2] = [100_000, 1_000_000];
const QUICK_MANY_FILES: usize = 10_000;

/// Duration of the requests of many guests: in a whole run, and in a quick one.
const MANY_GUESTS: Duration = Duration::from_secs(3);
const QUICK_MANY_GUESTS: Duration = Duration::from_millis(500);

/// This variable is set in the program that runs in a mount namespace of its own.
const INSIDE: &str = "GANGPLANK_OWN_MOUNTS";

fn main() -> ExitCode {
    let args = Args::parse();
    if args.with_rhostfs() && User::is_root() && env::var_os(INSIDE).is_none() {
        let error = run_inside();
        eprintln!(
            "bench: if it is interrupted, mounts are left behind: cannot run unshare: {error}"
        );
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Executes this program again in a mount namespace of its own, so that no mount remains after it
/// ends.
fn run_inside() -> io::Error {
    let program = env::current_exe().unwrap_or_default();
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "yes")
        .exec()
}

fn run(args: &Args) -> Result<()> {
    // rhostfs comes first, because its processes inherit this one's processors.
    if args.with_rhostfs() {
        rhostfs(args)?;
    }
    if args.rhostfs {
        return Ok(());
    }
    daemons(args)
}

/// Measures rhostfs beside virtio-fs.
fn rhostfs(args: &Args) -> Result<()> {
    let mut notes = Vec::new();
    let mut fixture = rhostfs::Fixture::start(&args.ram, |text| {
        eprintln!("bench: {text}");
        notes.push(text.to_owned());
    })?;
    let mut report = Report::new(Part::Rhostfs, fixture.names(), args.rounds(), args.time());
    let tables = rhostfs::tables(&mut fixture, args)?;
    report.add_tables(rhostfs::TITLE, tables);
    report.notes = notes;
    written(args, &report)
}

/// Writes a report to the files that the arguments name.
fn written(args: &Args, report: &Report) -> Result<()> {
    report.check()?;
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    if let Some(path) = &args.svg {
        report.write_svg(path)?;
    }
    if let Some(path) = &args.document {
        report.write_document(path)?;
    }
    Ok(())
}

/// Measures daemons side by side.
fn daemons(args: &Args) -> Result<()> {
    let mut notes = Vec::new();
    let mut note = |text: &str| {
        eprintln!("bench: {text}");
        notes.push(text.to_owned());
    };
    let mut daemons = args.daemons.clone();
    if daemons.is_empty() {
        daemons = daemon_under_test::defaults(&mut note)?;
    }
    daemons.extend(args.beside.iter().cloned());
    let processors = Processors::find()?;
    let mut placements = args.placements.clone();
    if placements.is_empty() {
        placements = PLACEMENTS.to_vec();
    }
    if !processors.has_two() && placements.iter().any(|placement| placement.apart) {
        note("with one processor, no daemon has one of its own");
        placements.retain(|placement| !placement.apart);
    }
    let commands = daemons
        .iter()
        .map(|it| (it.name.clone(), it.command.join(" ")));
    let mut report = Report::new(Part::Daemons, commands, args.rounds(), args.time());
    processors.pin_driver()?;

    let disk = match &args.disk {
        Some(disk) => disk.clone(),
        None => cache::target_dir().join("bench"),
    };
    std::fs::create_dir_all(&disk).with_context(|| format!("making {}", disk.display()))?;
    let shares = Shares {
        disk: Tree::new(&disk)?,
        ram: Tree::new(&args.ram)?,
    };
    if args.per_guest {
        placements.clear();
    }
    for placement in placements {
        let entries = args.entries(placement);
        let queues: &[usize] = if placement.apart { &[1, 2] } else { &[1] };
        for queues in queues {
            let able: Vec<_> = daemons
                .iter()
                .filter(|daemon| *queues == 1 || daemon.has_queues())
                .collect();
            let entries = entries.iter().copied();
            // Workloads with one request in flight use one queue only.
            let entries: Vec<_> = entries
                .filter(|entry| *queues == 1 || entry.depth > 1)
                .collect();
            if able.is_empty() || entries.is_empty() {
                continue;
            }
            let comparison = Comparison {
                placement,
                queues: *queues,
                processors: &processors,
                shares: &shares,
                rounds: args.rounds(),
                time: args.time(),
            };
            let tables = comparison.measure(&able, &entries)?;
            report.add_tables(&comparison.title(), tables);
        }
    }
    if !args.no_footprint {
        report.add_per_guest(per_guest(args, &daemons, &processors, &shares)?);
    }
    if !args.no_footprint && !args.per_guest {
        report.add_footprints(footprints(args, &daemons, &processors)?);
    }
    report.notes = notes;
    written(args, &report)
}

/// The directories that every daemon shares.
struct Shares {
    disk: Tree,
    ram: Tree,
}

impl Shares {
    fn on(&self, medium: Medium) -> &Tree {
        match medium {
            Medium::Disk => &self.disk,
            Medium::Ram => &self.ram,
        }
    }
}

/// Daemons that are measured under the same conditions.
struct Comparison<'a> {
    placement: Placement,
    queues: usize,
    processors: &'a Processors,
    shares: &'a Shares,
    rounds: usize,
    time: Duration,
}

impl Comparison<'_> {
    fn title(&self) -> String {
        match self.queues {
            1 => self.placement.meaning.to_owned(),
            queues => format!("{}, {queues} request queues", self.placement.meaning),
        }
    }

    fn measure(&self, daemons: &[&DaemonUnderTest], entries: &[Entry]) -> Result<Vec<Table>> {
        let start = |medium| -> Result<Vec<Running>> {
            let share = self.shares.on(medium).path();
            let started = daemons.iter().map(|daemon| {
                let Placement { apart, waiting, .. } = self.placement;
                daemon.start(share, self.queues, self.processors, apart, waiting)
            });
            started.collect()
        };
        let mut on_disk = start(Medium::Disk)?;
        let mut in_ram = start(Medium::Ram)?;
        let mut tables = Vec::new();
        let progress = Progress::of(entries.len());
        for entry in entries {
            let running = match entry.medium() {
                Medium::Disk => &mut on_disk,
                Medium::Ram => &mut in_ram,
            };
            progress.begin(&format!("bench: {} ({})", entry.name, self.title()));
            tables.push(self.workload(daemons, running, entry)?);
            progress.done();
        }
        Ok(tables)
    }

    fn workload(
        &self,
        daemons: &[&DaemonUnderTest],
        running: &mut [Running],
        entry: &Entry,
    ) -> Result<Table> {
        let names = daemons.iter().map(|daemon| daemon.name.clone());
        let names = std::iter::once(DIRECT.to_owned()).chain(names);
        let mut rounds: Vec<(String, Vec<Round>)> = names.map(|name| (name, Vec::new())).collect();
        let count = rounds.len();
        for round in 0..self.rounds {
            // The order rotates, because the processor's caches hold data of the previous daemon.
            for turn in 0..count {
                let at = (round + turn) % count;
                let done = match at.checked_sub(1).and_then(|at| running.get_mut(at)) {
                    None => self.directly(entry),
                    Some(running) => self.by_daemon(entry, running),
                };
                if let Some((name, rounds)) = rounds.get_mut(at) {
                    rounds.push(done.with_context(|| format!("{} by {name}", entry.name))?);
                }
            }
        }
        Ok(Table {
            workload: entry.name,
            placement: self.placement.name,
            depth: entry.depth,
            queues: self.queues,
            unit: entry.unit().name(),
            scores: scores(&rounds, entry.unit()),
        })
    }

    fn directly(&self, entry: &Entry) -> Result<Round> {
        let share = self.shares.on(entry.medium()).path();
        let mut clock = Clock::new(usage::own_processor_ns);
        let run = entry.directly(share, self.time, &mut || clock.look())?;
        clock.round(run)
    }

    fn by_daemon(&self, entry: &Entry, running: &mut Running) -> Result<Round> {
        let share = self.shares.on(entry.medium()).path();
        let pid = running.pid();
        let mut clock = Clock::new(|| usage::processor_ns(pid));
        let mut workload = entry.workload(share);
        let driven = workload::drive(
            &mut running.device,
            &mut *workload,
            entry.depth,
            self.time,
            || clock.look(),
        );
        let run = driven.with_context(|| running.log())?;
        clock.round(run)
    }
}

/// Processor time between two readings.
struct Clock<F> {
    read: F,
    seen: Vec<u64>,
}

impl<F: Fn() -> Result<u64>> Clock<F> {
    fn new(read: F) -> Self {
        let seen = Vec::with_capacity(2);
        Self { read, seen }
    }

    fn look(&mut self) -> Result<()> {
        self.seen.push((self.read)()?);
        Ok(())
    }

    fn round(&self, run: workload::Run) -> Result<Round> {
        let [before, after] = self.seen.as_slice() else {
            anyhow::bail!("the run has no processor times from before and after it");
        };
        ensure!(run.units > 0, "no operation finished within the round");
        let processor_ns = after.saturating_sub(*before);
        Ok(Round { run, processor_ns })
    }
}

fn per_guest(
    args: &Args,
    daemons: &[DaemonUnderTest],
    processors: &Processors,
    shares: &Shares,
) -> Result<Vec<PerGuest>> {
    let (connections, time) = if args.quick {
        (5, QUICK_MANY_GUESTS)
    } else {
        (21, MANY_GUESTS)
    };
    eprintln!("bench: what each guest costs");
    let measured = daemons.iter().map(|daemon| {
        per_guest::measure(daemon, processors, shares.ram.path(), connections, time)
            .with_context(|| daemon.name.clone())
    });
    measured.collect()
}

fn footprints(
    args: &Args,
    daemons: &[DaemonUnderTest],
    processors: &Processors,
) -> Result<Vec<Footprint>> {
    let sizes: &[usize] = if args.quick {
        &[QUICK_MANY_FILES]
    } else {
        &MANY_FILES_COUNTS
    };
    let (starts, idle) = if args.quick { (3, 1) } else { (11, 5) };
    eprintln!("bench: start-up, idling, and many files");
    let many_files = sizes.iter().map(|files| ManyFiles::new(&args.ram, *files));
    let many_files = many_files.collect::<Result<Vec<_>>>()?;
    let measured = daemons.iter().map(|daemon| {
        let idle = Duration::from_secs(idle);
        footprint::measure(daemon, processors, starts, idle, &many_files)
            .with_context(|| daemon.name.clone())
    });
    measured.collect()
}
