//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::daemon_under_test::DaemonUnderTest;
use crate::placement::{PLACEMENTS, Placement};
use crate::work::{CATALOGUE, Entry};

/// Measures virtio-fs daemons side by side, without a guest: rounds of each in turn, beside the
/// same work done by system calls.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench", version)]
pub(crate) struct Args {
    /// Fewer and shorter rounds, and fewer files: less than three minutes
    #[arg(long)]
    pub(crate) quick: bool,

    /// A daemon to measure, by NAME=COMMAND with {socket}, {share} and perhaps {queues} in it. The
    /// first is compared with the others. Without any: gangplankd, virtiofsd 1.14.0 and QEMU's
    /// former virtiofsd
    #[arg(long = "daemon", value_name = "NAME=COMMAND", value_parser = DaemonUnderTest::parse)]
    pub(crate) daemons: Vec<DaemonUnderTest>,

    /// Measure these beside the daemons that are measured by default
    #[arg(long = "beside", value_name = "NAME=COMMAND", value_parser = DaemonUnderTest::parse)]
    pub(crate) beside: Vec<DaemonUnderTest>,

    /// Workloads to measure, by name or by a common prefix
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(crate) workloads: Vec<String>,

    /// Who runs where: one, two, two-busy
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = placement)]
    pub(crate) placements: Vec<Placement>,

    /// Rounds of each workload
    #[arg(long)]
    pub(crate) rounds: Option<usize>,

    /// Milliseconds of each round
    #[arg(long, value_name = "MS")]
    pub(crate) time: Option<u64>,

    /// Leave out start-up, idling, directories of many files, and what each guest costs
    #[arg(long)]
    pub(crate) no_footprint: bool,

    /// Measure only what each guest costs: memory, time to the first reply, many guests at once
    #[arg(long, conflicts_with_all = ["workloads", "placements", "no_footprint", "rhostfs"])]
    pub(crate) per_guest: bool,

    /// Measure only rhostfs beside virtio-fs. Without workloads or placements, that is a part of
    /// every run
    #[arg(long, conflicts_with_all = ["daemons", "beside", "placements", "no_footprint"])]
    pub(crate) rhostfs: bool,

    /// A directory on a disk's file system, to work in
    #[arg(long, value_name = "DIR")]
    pub(crate) disk: Option<PathBuf>,

    /// A directory on tmpfs, to work in
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    pub(crate) ram: PathBuf,

    /// Write all numbers to this file; those of rhostfs to a second file with -rhostfs in its name
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw the rates into this file; those of rhostfs into a second one
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    /// Put the tables between the marks of this document, and a chart beside it
    #[arg(long, value_name = "FILE")]
    pub(crate) document: Option<PathBuf>,
}

fn placement(name: &str) -> Result<Placement, String> {
    let found = PLACEMENTS.into_iter().find(|known| known.name == name);
    found.ok_or_else(|| "it is one, two or two-busy".to_owned())
}

impl Args {
    /// Whether rhostfs is measured.
    pub(crate) fn with_rhostfs(&self) -> bool {
        let all = self.workloads.is_empty() && self.placements.is_empty() && !self.per_guest;
        self.rhostfs || all
    }

    /// The number of rounds.
    pub(crate) fn rounds(&self) -> usize {
        let usual = if self.quick { 3 } else { 11 };
        self.rounds.unwrap_or(usual).max(1)
    }

    /// The duration of a round.
    pub(crate) fn time(&self) -> Duration {
        let usual = if self.quick { 60 } else { 250 };
        Duration::from_millis(self.time.unwrap_or(usual).max(1))
    }

    /// The chosen workloads for a placement.
    pub(crate) fn entries(&self, placement: Placement) -> Vec<Entry> {
        let asked = |entry: &&Entry| match self.workloads.as_slice() {
            // With a daemon apart, waiting matters; copying costs the same.
            [] => !placement.apart || APART.contains(&entry.name),
            _ => self.names(entry.name, |name| {
                CATALOGUE.iter().any(|entry| entry.name == name)
            }),
        };
        CATALOGUE.iter().filter(asked).copied().collect()
    }

    /// Whether `workload` is chosen: by its name, by a prefix that is no other workload's name
    /// (`is_known`), or because the command line names none.
    pub(crate) fn names(&self, workload: &str, is_known: impl Fn(&str) -> bool) -> bool {
        let names = |name: &String| {
            workload == name || !is_known(name) && workload.starts_with(name.as_str())
        };
        self.workloads.is_empty() || self.workloads.iter().any(names)
    }
}

/// The workloads with a daemon apart, unless the command line names others.
const APART: [&str; 5] = [
    "getattr",
    "getattr-32",
    "lookup-forget",
    "random-read-4k-32",
    "read-1m",
];
