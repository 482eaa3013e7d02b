//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use gangplank_tests::guest::Machine;

use crate::situation::Situation;

/// Measures common work on files in stock guests, on every file system through which a guest can
/// use a host directory, side by side.
#[derive(Debug, Parser)]
#[command(name = "scripts/bench --guests", version)]
pub(crate) struct Args {
    /// The kind of guest
    #[arg(default_value = "uml")]
    pub(crate) machine: Kind,

    /// Workloads to measure; all without any
    #[arg(value_name = "WORKLOAD")]
    pub(crate) workloads: Vec<String>,

    /// What else the machine does, and who runs where
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        default_value = "idle,busy,four,one"
    )]
    pub(crate) situations: Vec<Situation>,

    /// Rounds of each workload in each situation
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,

    /// Amount of work of each round, in percent of the usual amount
    #[arg(long, value_name = "PERCENT", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) size: u32,

    /// Count instead of timing: the messages of each workload, and the daemon's system calls,
    /// wake-ups and switches, by perf; once, in the first situation
    #[arg(long)]
    pub(crate) counts: bool,

    /// Measure another build of gangplankd as well, by NAME=PROGRAM
    #[arg(long, value_name = "NAME=PROGRAM", value_parser = beside)]
    pub(crate) beside: Vec<(String, PathBuf)>,

    /// Write the rates of every round to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw the rates of the first situation into this file
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    /// Put the tables between the marks of this document, and a chart beside it
    #[arg(long, value_name = "FILE")]
    pub(crate) document: Option<PathBuf>,
}

/// The guests that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Stock User Mode Linux
    Uml,
    /// QEMU on x86-64 with an emulated processor
    #[value(name = "qemu-x86_64")]
    QemuX86_64,
}

impl Kind {
    /// The machine of the test library.
    pub(crate) const fn machine(self) -> Machine {
        match self {
            Self::Uml => Machine::Uml,
            Self::QemuX86_64 => Machine::QemuX86_64,
        }
    }

    /// Its name in documents and of files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::QemuX86_64 => "qemu-x86_64",
        }
    }
}

fn beside(text: &str) -> Result<(String, PathBuf), String> {
    let (name, program) = text.split_once('=').ok_or("it has the form NAME=PROGRAM")?;
    let is_word = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '/');
    if !is_word || crate::fixture::RESERVED.contains(&name) {
        return Err(format!("{name:?} cannot be the name of a column"));
    }
    Ok((name.to_owned(), program.into()))
}
