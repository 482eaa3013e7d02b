//! What a run is reported as: tables for people, JSON for machines, a drawing.

mod svg;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gangplank_bench::document::{self, Machine};
use serde::Serialize;

use crate::footprint::Footprint;
use crate::score::Table;

/// What is measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Daemons side by side.
    Daemons,
    /// rhostfs beside virtio-fs.
    Rhostfs,
}

impl Part {
    /// What stands before its results in a document.
    const fn mark(self) -> &'static str {
        match self {
            Self::Daemons => "<!-- results: scripts/bench --document puts them here -->",
            Self::Rhostfs => "<!-- results of rhostfs: scripts/bench --document puts them here -->",
        }
    }

    /// Where its numbers go if everything's are wanted at `path`.
    fn file(self, path: &Path) -> PathBuf {
        match self {
            Self::Daemons => path.to_owned(),
            Self::Rhostfs => document::beside(path, "-rhostfs"),
        }
    }
}

/// All that a part of a run came to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    #[serde(skip)]
    part: Part,
    machine: Machine,
    daemons: Vec<Daemon>,
    rounds: usize,
    round_ms: u128,
    /// What was left out, and why.
    pub(crate) notes: Vec<String>,
    /// Each workload.
    pub(crate) tables: Vec<Table>,
    /// Each daemon.
    pub(crate) footprints: Vec<Footprint>,
    /// What was printed.
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
struct Daemon {
    name: String,
    command: String,
}

impl Report {
    /// An empty one of this machine, with what is measured by name and command line, or what else
    /// says what it is.
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
            text: String::new(),
        }
    }

    /// Takes the workloads of one match, and prints them.
    pub(crate) fn add_tables(&mut self, title: &str, tables: Vec<Table>) {
        self.print(&text::tables(title, &tables));
        self.tables.extend(tables);
    }

    /// Takes what daemons take beside time, and prints it.
    pub(crate) fn add_footprints(&mut self, footprints: Vec<Footprint>) {
        self.print(&text::footprints(&footprints));
        self.footprints.extend(footprints);
    }

    fn print(&mut self, text: &str) {
        print!("{text}");
        self.text += text;
    }

    /// That every daemon has every number: none is missing, none is nonsense.
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
        ensure!(
            !self.tables.is_empty() || !self.footprints.is_empty(),
            "there is no workload of that name"
        );
        Ok(())
    }

    /// Writes everything as JSON.
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        let path = self.part.file(path);
        let text = serde_json::to_string_pretty(self)?;
        fs::write(&path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// Puts what was printed into the document at `path`, in the place of what was there, and the
    /// drawing beside it.
    pub(crate) fn write_document(&self, path: &Path) -> Result<()> {
        let told = format!(
            "{}; medians of {} interleaved rounds of {} ms.\n{}",
            self.machine, self.rounds, self.round_ms, self.text
        );
        document::put(path, self.part.mark(), &told)?;
        self.write_svg(&path.with_extension("svg"))
    }

    /// Draws the rates.
    pub(crate) fn write_svg(&self, path: &Path) -> Result<()> {
        let path = self.part.file(path);
        fs::write(&path, svg::draw(&self.tables))
            .with_context(|| format!("writing {}", path.display()))
    }
}
