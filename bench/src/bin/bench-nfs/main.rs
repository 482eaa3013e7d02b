//! `scripts/bench --nfs`: gangplank-nfs beside nfs-ganesha, by an NFSv3 client in user space over
//! loopback TCP. The servers are measured in turn in each round.
//!
//! The program needs network and mount namespaces of its own, as the script makes them: nfs-ganesha
//! registers at an rpcbind of its own, and runs in a tree of its packages.
#![allow(clippy::print_stdout, reason = "the table is what the program is for")]

mod servers;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use gangplank_bench::document::Machine;
use gangplank_bench::progress::Progress;
use serde::Serialize;

use self::servers::Server;
use self::workload::Workload;

/// Measures gangplank-nfs beside nfs-ganesha: one call in flight, over loopback TCP
#[derive(Debug, Parser)]
#[command(name = "scripts/bench --nfs", version)]
struct Args {
    /// Two rounds of a fifth of a second
    #[arg(long)]
    quick: bool,

    /// Rounds of each workload
    #[arg(long, default_value_t = 7)]
    rounds: usize,

    /// Milliseconds of each round
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    time: u64,

    /// Workloads to measure, by name or by a common prefix
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    workloads: Vec<String>,

    /// A directory whose file system the servers share, and which has file handles: no overlayfs
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    disk: PathBuf,

    /// Measure another gangplank-nfs as well, of this name: another version
    #[arg(long, value_name = "NAME=PROGRAM", value_parser = parse_beside)]
    beside: Vec<Beside>,

    /// Build and fetch the servers, and measure nothing
    #[arg(long)]
    prepare: bool,

    /// Write all numbers to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Another gangplank-nfs.
#[derive(Clone, Debug)]
struct Beside {
    name: String,
    program: PathBuf,
}

fn parse_beside(text: &str) -> Result<Beside, &'static str> {
    let (name, program) = text.split_once('=').ok_or("NAME=PROGRAM")?;
    let (name, program) = (name.to_owned(), program.into());
    Ok(Beside { name, program })
}

/// The rates of a server in a workload, in calls for each second, by round.
#[derive(Debug, Serialize)]
struct Rates {
    workload: &'static str,
    server: String,
    calls_per_second: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    rates: Vec<Rates>,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.rounds, args.time) = (2, 200);
    }
    if args.prepare {
        return servers::prepare().map(drop);
    }
    ensure!(args.rounds > 0, "--rounds is 0");
    let is_meant = |workload: &Workload| {
        let mut prefixes = args.workloads.iter();
        args.workloads.is_empty() || prefixes.any(|prefix| workload.name().starts_with(prefix))
    };
    let workloads: Vec<_> = Workload::ALL.into_iter().filter(is_meant).collect();
    ensure!(!workloads.is_empty(), "no workload is called so");
    let own = gangplank_tests::tools::nfs()?;
    let mut servers = vec![
        servers::ganesha(&args.disk)?,
        servers::gangplank("gangplank-nfs", &own, &args.disk, servers::FIRST_PORT)?,
    ];
    for (beside, port) in args.beside.iter().zip(servers::FIRST_PORT + 1..) {
        let server = servers::gangplank(&beside.name, &beside.program, &args.disk, port)?;
        servers.push(server);
    }
    let mut rates = Vec::new();
    let progress = Progress::of(workloads.len());
    for workload in workloads {
        progress.begin(workload.name());
        rates.extend(measure(workload, &mut servers, &args)?);
        progress.done();
    }
    print(&rates);
    if let Some(path) = &args.json {
        let report = Report {
            machine: Machine::this(),
            rates,
        };
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Measures the servers in turn, after a round that is not counted.
fn measure(workload: Workload, servers: &mut [Server], args: &Args) -> Result<Vec<Rates>> {
    let mut rates: Vec<_> = servers
        .iter()
        .map(|server| Rates {
            workload: workload.name(),
            server: server.name.clone(),
            calls_per_second: Vec::new(),
        })
        .collect();
    let time = Duration::from_millis(args.time);
    for server in &mut *servers {
        Workload::warm_up(&mut server.client, &server.root)?;
    }
    for round in 0..=args.rounds {
        for (server, rates) in servers.iter_mut().zip(&mut rates) {
            let rate = workload
                .run(&mut server.client, &server.root, time)
                .with_context(|| format!("{} with {}", workload.name(), server.name))?;
            if round > 0 {
                rates.calls_per_second.push(rate);
            }
        }
    }
    Ok(rates)
}

/// How many times the rates of `other` these are, round by round: a busy machine slows both.
fn ratio(rates: &Rates, other: &Rates) -> f64 {
    let pairs = rates.calls_per_second.iter().zip(&other.calls_per_second);
    median(&pairs.map(|(rate, other)| rate / other).collect::<Vec<_>>())
}

/// The value in the middle.
fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(rates: &[Rates]) {
    println!("Calls for each second: the median of the rounds and their range; and the median of");
    println!("what each round is, compared with that of nfs-ganesha.\n");
    println!("| workload | server | median | least | most | to nfs-ganesha |");
    println!("| --- | --- | ---: | ---: | ---: | ---: |");
    for rate in rates {
        let mut same = rates.iter().filter(|other| other.workload == rate.workload);
        let ganesha = same.find(|other| other.server == servers::GANESHA_NAME);
        let ratio = ganesha.map_or(f64::NAN, |ganesha| ratio(rate, ganesha));
        let all = &rate.calls_per_second;
        let least = all.iter().copied().fold(f64::INFINITY, f64::min);
        let most = all.iter().copied().fold(0.0, f64::max);
        println!(
            "| {} | {} | {:.0} | {least:.0} | {most:.0} | {ratio:.2} |",
            rate.workload,
            rate.server,
            median(all)
        );
    }
}
