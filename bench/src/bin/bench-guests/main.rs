//! The benchmark in guests: common work on files, in stock guests on several file systems in turn,
//! and on the host.
//!
//! In User Mode Linux the peers are hostfs and virtiofsd 1.14 behind the relay, in QEMU virtiofsd
//! and 9p. All serve directories of one host file system, mounted side by side in the guest. Every
//! round runs a workload on each of them. gangplankd is measured twice, on two mounts: the ratio of
//! the two is the noise of the machine. `guest-bench` is the program in the guest.
//!
//! Everything is measured in several [`situation`]s, since a fast reply can help where guest and
//! daemon share a processor and harm where each has one. The worst one counts.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the console"
)]

mod args;
mod costs;
mod fixture;
mod kernel_counts;
mod results;
mod situation;
mod summary;
mod tap;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use gangplank_bench::document;
use gangplank_bench::progress::Progress;

use crate::args::{Args, Kind};
use crate::fixture::{Fixture, Purpose};
use crate::results::Results;
use crate::situation::Situation;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-guests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The results of one situation.
struct Measured {
    situation: Situation,
    /// What gangplankd is compared with.
    peers: Vec<String>,
    results: Results,
}

fn run(args: &Args) -> Result<()> {
    if args.counts {
        return count(args);
    }
    let mut measured = Vec::new();
    let mut failed = None;
    for situation in &args.situations {
        match measure(args, *situation) {
            Ok(results) => measured.push(results),
            // What was measured before took long, and is not lost.
            Err(error) => {
                failed = Some(error.context(format!("situation {}", situation.name())));
                break;
            }
        }
    }
    publish(args, &measured)?;
    failed.map_or(Ok(()), Err)
}

/// Prints the results, and writes them into the files that the arguments name.
fn publish(args: &Args, measured: &[Measured]) -> Result<()> {
    let tables = tables(measured);
    println!("{tables}");
    if let Some(path) = &args.json {
        let parts: Vec<String> = measured
            .iter()
            .map(|measured| measured.results.json(measured.situation.name()))
            .collect();
        write(path, &format!("[\n{}\n]\n", parts.join(",\n")))?;
    }
    let svg = |path: &Path| match measured.first() {
        Some(first) => {
            let title = format!(
                "files in a guest, {}, {}: rates, each workload to its own scale",
                args.machine.name(),
                first.situation.heading()
            );
            write(path, &first.results.drawing(&title, &first.peers))
        }
        None => Ok(()),
    };
    if let Some(path) = &args.svg {
        svg(path)?;
    }
    if let Some(path) = &args.document {
        let told = format!(
            "{}; medians of {} interleaved rounds, workloads at {} % of their usual size. The \
             column \"again\" is the same daemon a second time: its ratio is the noise.\n\n\
             {tables}",
            document::Machine::this(),
            args.rounds,
            args.size,
        );
        document::put(path, mark(args.machine), &told)?;
        let beside = document::beside(path, &format!("-{}", args.machine.name()));
        svg(&beside.with_extension("svg"))?;
    }
    Ok(())
}

/// The workloads that the arguments ask for.
fn workloads(args: &Args, fixture: &Fixture) -> Result<Vec<String>> {
    let known = fixture.workloads()?;
    for asked in &args.workloads {
        ensure!(known.contains(asked), "there is no workload {asked}");
    }
    Ok(match args.workloads.is_empty() {
        true => known,
        false => args.workloads.clone(),
    })
}

/// Counts what each workload takes.
fn count(args: &Args) -> Result<()> {
    let mut situations = args.situations.iter().copied();
    let alone = situations.find(|situation| situation.guests() == 1);
    let situation = alone.unwrap_or(Situation::Idle);
    let entered = situation.enter()?;
    let machine = args.machine.machine();
    let mut fixture = Fixture::new(machine, args.size, situation, &args.beside, Purpose::Counts)?;
    let mut costs = Vec::new();
    for workload in workloads(args, &fixture)? {
        eprintln!("counting: {workload} ...");
        costs.extend(fixture.costs(&workload)?);
    }
    drop(fixture);
    drop(entered);
    let table = costs::table(&costs);
    println!("{table}");
    if let Some(path) = &args.json {
        write(path, &serde_json::to_string_pretty(&costs)?)?;
    }
    if let Some(path) = &args.document {
        let told = format!(
            "{}; one run of each workload at {} % of its usual size.\n\n{table}",
            document::Machine::this(),
            args.size,
        );
        document::put(path, counts_mark(args.machine), &told)?;
    }
    Ok(())
}

fn measure(args: &Args, situation: Situation) -> Result<Measured> {
    let entered = situation.enter()?;
    let machine = args.machine.machine();
    let mut fixture = Fixture::new(machine, args.size, situation, &args.beside, Purpose::Rates)?;
    let workloads = workloads(args, &fixture)?;
    let mut results = Results::default();
    let progress = Progress::of(workloads.len());
    for workload in &workloads {
        progress.begin(&format!("{}: {workload} ...", situation.name()));
        for printed in fixture.in_guests(workload, args.rounds)? {
            results.read(&printed)?;
        }
        for printed in fixture.on_host(workload, args.rounds)? {
            results.read(&printed)?;
        }
        progress.done();
    }
    drop(progress);
    let peers = fixture.peers().to_vec();
    drop(fixture);
    drop(entered);
    Ok(Measured {
        situation,
        peers,
        results,
    })
}

/// The summary, and a table for each situation.
fn tables(measured: &[Measured]) -> String {
    let mut text = format!(
        "{}\n{}",
        summary::by_situation(measured),
        summary::table(measured)
    );
    for Measured {
        situation,
        peers,
        results,
    } in measured
    {
        text.push_str(&format!(
            "\n**{}**: {}\n\n{}",
            situation.name(),
            situation.heading(),
            results.table(peers)
        ));
    }
    text
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// The mark before the results of such guests in a document.
const fn mark(kind: Kind) -> &'static str {
    match kind {
        Kind::Uml => {
            "<!-- results in uml: scripts/bench --guests uml --document puts them here -->"
        }
        Kind::QemuX86_64 => {
            "<!-- results in qemu: scripts/bench --guests qemu-x86_64 --document puts them here \
             -->"
        }
    }
}

/// The mark before the counts of such guests in a document.
const fn counts_mark(kind: Kind) -> &'static str {
    match kind {
        Kind::Uml => {
            "<!-- counts in uml: scripts/bench --guests uml --counts --document puts them here -->"
        }
        Kind::QemuX86_64 => {
            "<!-- counts in qemu: scripts/bench --guests qemu-x86_64 --counts --document puts them \
             here -->"
        }
    }
}
