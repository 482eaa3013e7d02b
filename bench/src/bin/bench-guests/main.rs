//! The benchmark in guests: common work on files, in one guest on several file systems in turn, and
//! on the host.
//!
//!     bench-guests [uml|qemu-x86_64] [--rounds N] [--size PERCENT] [--apart] [--json FILE]
//!                  [--svg FILE] [--document FILE] [WORKLOAD...]
//!
//! In User Mode Linux the peers are hostfs and virtiofsd 1.14 behind the relay, in QEMU virtiofsd
//! and 9p. All serve directories of one host file system, mounted side by side in one guest. Every
//! round runs every workload on each of them. `guest-bench` is the program in the guest.
//!
//! Everything runs on one processor. With `--apart` the kernel places the processes: results then
//! depend on how long a processor takes to wake up, which is long in virtual machines.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the console"
)]

mod fixture;
mod results;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use gangplank_bench::{cpu_affinity, document};
use gangplank_tests::guest::Machine;

use crate::fixture::Fixture;
use crate::results::Results;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!(
                "bench-guests: {error:#}\nusage: bench-guests [uml|qemu-x86_64] [--rounds N] \
                 [--size PERCENT] [--apart] \
                 [--json FILE] [--svg FILE] [--document FILE] [WORKLOAD...]"
            );
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-guests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The arguments.
struct Arguments {
    machine: Machine,
    rounds: u32,
    percent: u32,
    apart: bool,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
    document: Option<PathBuf>,
    workloads: Vec<String>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self {
            machine: Machine::Uml,
            rounds: 5,
            percent: 100,
            apart: false,
            json: None,
            svg: None,
            document: None,
            workloads: Vec::new(),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} has no value"));
            match word.as_str() {
                "uml" => parsed.machine = Machine::Uml,
                "qemu-x86_64" => parsed.machine = Machine::QemuX86_64,
                "--rounds" => parsed.rounds = value()?.parse().context("--rounds")?,
                "--size" => parsed.percent = value()?.parse().context("--size")?,
                "--apart" => parsed.apart = true,
                "--document" => parsed.document = Some(value()?.into()),
                "--json" => parsed.json = Some(value()?.into()),
                "--svg" => parsed.svg = Some(value()?.into()),
                option if option.starts_with('-') => bail!("there is no option {option}"),
                workload => parsed.workloads.push(workload.to_owned()),
            }
        }
        Ok(parsed)
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let machine = document::Machine::this();
    if !arguments.apart {
        let processor = cpu_affinity::allowed()?.first().copied();
        cpu_affinity::stay_on(processor.context("no processor to run on")?)
            .context("choosing a processor")?;
    }
    let mut fixture = Fixture::new(arguments.machine, arguments.percent)?;
    let mut results = Results::default();
    let workloads = match arguments.workloads.is_empty() {
        true => fixture.workloads()?,
        false => arguments.workloads.clone(),
    };
    for workload in &workloads {
        eprintln!("{workload} ...");
        results.read(&fixture.in_guest(workload, arguments.rounds)?)?;
        results.read(&fixture.on_host(workload, arguments.rounds)?)?;
    }
    let table = results.table(fixture.peers());
    println!("{table}");
    let (mark, name) = told_of(arguments.machine);
    let svg = |path: &Path| {
        let title = format!("files in a guest, {name}: rates, each workload to its own scale");
        write(path, &results.drawing(&title, fixture.peers()))
    };
    if let Some(path) = &arguments.json {
        write(path, &results.json())?;
    }
    if let Some(path) = &arguments.svg {
        svg(path)?;
    }
    if let Some(path) = &arguments.document {
        let told = format!(
            "{}; medians of {} interleaved rounds, workloads at {} % of their usual size, \
             {}.\n\n{table}",
            machine,
            arguments.rounds,
            arguments.percent,
            if arguments.apart {
                "processes wherever the kernel puts them"
            } else {
                "all on one processor"
            }
        );
        document::put(path, mark, &told)?;
        let beside = document::beside(path, &format!("-{name}"));
        svg(&beside.with_extension("svg"))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// The mark before the results of guests on `machine` in a document, and the name of the files
/// beside it.
const fn told_of(machine: Machine) -> (&'static str, &'static str) {
    match machine {
        Machine::Uml => (
            "<!-- results in uml: scripts/bench --guests uml --document puts them here -->",
            "uml",
        ),
        _ => (
            "<!-- results in qemu: scripts/bench --guests qemu-x86_64 --document puts them here \
             -->",
            "qemu-x86_64",
        ),
    }
}
