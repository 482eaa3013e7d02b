//! The report of a run: Markdown tables, JSON, and a chart.

mod svg;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_bench::document::{self, Machine};
use serde::Serialize;

use crate::footprint::Footprint;
use crate::per_guest::PerGuest;
use crate::score::Table;

/// A part of a run with a report of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Daemons side by side.
    Daemons,
    /// rhostfs beside virtio-fs.
    Rhostfs,
}

impl Part {
    /// The mark before its results in a document.
    const fn mark(self) -> &'static str {
        match self {
            Self::Daemons => "<!-- results: scripts/bench --document puts them here -->",
            Self::Rhostfs => "<!-- results of rhostfs: scripts/bench --document puts them here -->",
        }
    }

    /// The file of its numbers, if `path` is the file of the whole run.
    fn file(self, path: &Path) -> PathBuf {
        match self {
            Self::Daemons => path.to_owned(),
            Self::Rhostfs => document::beside(path, "-rhostfs"),
        }
    }
}

/// The results of a part of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(skip)]
    part: Part,
    machine: Machine,
    daemons: Vec<Daemon>,
    rounds: usize,
    round_ms: u128,
    /// What was omitted, and why.
    pub(crate) notes: Vec<String>,
    /// The results by workload.
    pub(crate) tables: Vec<Table>,
    /// The footprints by daemon.
    pub(crate) footprints: Vec<Footprint>,
    /// What a guest costs, by daemon.
    pub(crate) per_guest: Vec<PerGuest>,
    /// The printed text.
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
struct Daemon {
    name: String,
    command: String,
}

impl Report {
    /// An empty report of this machine. `daemons` has the names and command lines, or descriptions.
    pub(crate) fn new(
        part: Part,
        daemons: impl Iterator<Item = (String, String)>,
        rounds: usize,
        time: Duration,
    ) -> Self {
        let daemons = daemons.map(|(name, command)| Daemon { name, command });
        Self {
            part,
            machine: Machine::this(),
            daemons: daemons.collect(),
            rounds,
            round_ms: time.as_millis(),
            notes: Vec::new(),
            tables: Vec::new(),
            footprints: Vec::new(),
            per_guest: Vec::new(),
            text: String::new(),
        }
    }

    /// Adds and prints the workloads of one comparison.
    pub(crate) fn add_tables(&mut self, title: &str, tables: Vec<Table>) {
        self.print(&text::tables(title, &tables));
        self.tables.extend(tables);
    }

    /// Adds and prints footprints.
    pub(crate) fn add_footprints(&mut self, footprints: Vec<Footprint>) {
        self.print(&text::footprints(&footprints));
        self.footprints.extend(footprints);
    }

    /// Adds and prints what guests cost.
    pub(crate) fn add_per_guest(&mut self, per_guest: Vec<PerGuest>) {
        self.print(&text::per_guest(&per_guest));
        self.per_guest.extend(per_guest);
    }

    fn print(&mut self, text: &str) {
        print!("{text}");
        self.text += text;
    }

    /// Fails unless every daemon has every number, and each is finite and positive.
    pub(crate) fn check(&self) -> Result<()> {
        for table in &self.tables {
            let missing = || format!("{} has no numbers", table.workload);
            ensure!(table.scores.len() > 1, missing());
            for score in &table.scores {
                let numbers = [score.rate, score.processor_us]
                    .into_iter()
                    .flat_map(|spread| [spread.median, spread.min, spread.max])
                    .chain(score.times.values().copied())
                    .chain(score.p50_us)
                    .chain(score.p99_us);
                for number in numbers {
                    ensure!(
                        number.is_finite() && number > 0.0,
                        "{} by {} has a number that is {number}",
                        table.workload,
                        score.name
                    );
                }
                let alone = table.depth == 1 || score.name == crate::score::DIRECT;
                ensure!(score.p50_us.is_some() || !alone, missing());
            }
        }
        for footprint in &self.footprints {
            ensure!(
                footprint.memory > 0 && footprint.descriptors > 0,
                "{} is said to hold nothing",
                footprint.name
            );
        }
        for cost in &self.per_guest {
            ensure!(
                cost.private > 0 && cost.processes > 0,
                "a guest of {} is said to cost nothing",
                cost.name
            );
        }
        let has_results = !self.tables.is_empty() || !self.footprints.is_empty();
        ensure!(
            has_results || !self.per_guest.is_empty(),
            "there is no workload of that name"
        );
        Ok(())
    }

    /// Writes the report as JSON.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let path = self.part.file(path);
        let text = serde_json::to_string_pretty(self)?;
        fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// Writes the printed text into the document at `path`, in place of the previous text, and the
    /// chart beside it.
    pub(crate) fn write_document(&self, path: &Path) -> Result<()> {
        let told = format!(
            "{}; medians of {} interleaved rounds of {} ms.\n{}",
            self.machine, self.rounds, self.round_ms, self.text
        );
        document::put(path, self.part.mark(), &told)?;
        self.write_svg(&path.with_extension("svg"))
    }

    /// Writes the chart of the rates.
    pub(crate) fn write_svg(&self, path: &Path) -> Result<()> {
        let path = self.part.file(path);
        fs::write(&path, svg::draw(&self.tables))
            .with_context(|| format!("writing {}", path.display()))
    }
}
