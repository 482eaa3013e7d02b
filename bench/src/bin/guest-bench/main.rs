//! Times common work on files, as a program sees it, on several directories in turn. The program is
//! static, so that it runs in any guest and, for comparison, on the host.
//!
//!     guest-bench [--root TOOLS] [--rounds N] [--size PERCENT] [--drop-caches]
//!                 [--phase prepare|run|clear] NAME=DIRECTORY... -- WORKLOAD...
//!     guest-bench --list
//!
//! Each result is one line: workload, name, seconds, number of units, unit. Workloads run the
//! programs of the system tree TOOLS, which then has to contain the directories; without it, those
//! of the running system. With --drop-caches, workloads that must find nothing cached drop the
//! kernel's caches, which is for a guest of one's own. With --phase, it does that part of a single
//! round, so that whoever counts can begin and end between the parts.
#![allow(clippy::print_stdout, reason = "a program for the console")]

mod names;
mod programs;
mod transfers;
mod work_dir;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};

use crate::work_dir::WorkDir;
use crate::workload::{WORKLOADS, Workload};

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| word == "--list") {
        WORKLOADS
            .iter()
            .for_each(|known| println!("{}", known.name));
        return ExitCode::SUCCESS;
    }
    let done = Arguments::parse(std::env::args().skip(1)).and_then(|arguments| run(&arguments));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("guest-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A part of a workload's only round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prepare,
    Run,
    Clear,
}

/// The arguments.
struct Arguments {
    rounds: u32,
    /// All of them without one.
    phase: Option<Phase>,
    directories: Vec<WorkDir>,
    workloads: Vec<&'static Workload>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut root = PathBuf::from("/");
        let mut rounds = 1;
        let mut percent = 100;
        let mut drop_caches = false;
        let mut phase = None;
        let mut directories = Vec::new();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} has no value"));
            match word.as_str() {
                "--" => break,
                "--root" => root = value()?.into(),
                "--drop-caches" => drop_caches = true,
                "--phase" => {
                    phase = Some(match value()?.as_str() {
                        "prepare" => Phase::Prepare,
                        "run" => Phase::Run,
                        "clear" => Phase::Clear,
                        other => bail!("there is no phase {other}"),
                    });
                }
                "--rounds" => rounds = value()?.parse().context("--rounds")?,
                "--size" => percent = value()?.parse().context("--size")?,
                _ => {
                    let (name, directory) = word
                        .split_once('=')
                        .with_context(|| format!("'{word}' is not NAME=DIRECTORY"))?;
                    directories.push((name.to_owned(), PathBuf::from(directory)));
                }
            }
        }
        ensure!(!directories.is_empty(), "no directory given");
        let mut workloads = Vec::new();
        for name in words {
            match WORKLOADS.iter().find(|known| known.name == name) {
                Some(known) => workloads.push(known),
                None => bail!("there is no workload {name}"),
            }
        }
        if workloads.is_empty() {
            workloads.extend(WORKLOADS);
        }
        Ok(Self {
            rounds,
            phase,
            directories: directories
                .into_iter()
                .map(|(name, directory)| {
                    WorkDir::new(name, directory, root.clone(), percent, drop_caches)
                })
                .collect(),
            workloads,
        })
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    for workload in &arguments.workloads {
        match arguments.phase {
            None => all_rounds(workload, arguments)?,
            Some(phase) => {
                for dir in &arguments.directories {
                    only(phase, workload, dir)?;
                }
            }
        }
    }
    Ok(())
}

fn all_rounds(workload: &Workload, arguments: &Arguments) -> Result<()> {
    for dir in &arguments.directories {
        if !workload.consumes {
            prepare(workload, dir)?;
        }
    }
    for round in 0..usize::try_from(arguments.rounds)? {
        for dir in order(&arguments.directories, round) {
            if workload.consumes {
                prepare(workload, dir)?;
            }
            if workload.cold {
                dir.forget_caches()?;
            }
            measure(workload, dir)?;
        }
    }
    for dir in &arguments.directories {
        dir.clear()?;
    }
    Ok(())
}

/// `all` in the order of a round: from another one on in every pair of rounds, forwards in the
/// first and backwards in the second, so that no file system always has the same one before it.
/// What that one left in caches and on the disk costs, or spares, whoever comes next.
fn order<T>(all: &[T], round: usize) -> Vec<&T> {
    let (before, from) = all.split_at((round / 2) % all.len().max(1));
    let mut order: Vec<&T> = from.iter().chain(before).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

fn only(phase: Phase, workload: &Workload, dir: &WorkDir) -> Result<()> {
    match phase {
        Phase::Prepare => {
            prepare(workload, dir)?;
            if workload.cold {
                dir.forget_caches()?;
            } else if !workload.consumes {
                // What it finds in the caches is there after the first round.
                (workload.run)(dir)?;
            }
            Ok(())
        }
        Phase::Run => measure(workload, dir),
        Phase::Clear => dir.clear(),
    }
}

fn measure(workload: &Workload, dir: &WorkDir) -> Result<()> {
    let measured =
        (workload.run)(dir).with_context(|| format!("{} on {}", workload.name, dir.name()))?;
    println!(
        "{} {} {:.6} {} {}",
        workload.name,
        dir.name(),
        measured.took.as_secs_f64(),
        measured.count,
        workload.unit
    );
    Ok(())
}

fn prepare(workload: &Workload, dir: &WorkDir) -> Result<()> {
    dir.clear()?;
    (workload.prepare)(dir)
        .with_context(|| format!("preparing {} on {}", workload.name, dir.name()))?;
    rustix::fs::sync();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_begins_a_round_and_none_always_follows_the_same_one() {
        let all = [0, 1, 2, 3];
        let orders: Vec<Vec<&i32>> = (0..7).map(|round| order(&all, round)).collect();
        let first: HashSet<&i32> = orders.iter().map(|order| order[0]).collect();
        assert_eq!(first.len(), all.len(), "{orders:?}");
        for one in &all {
            let before: HashSet<&i32> = orders
                .iter()
                .flat_map(|order| order.windows(2))
                .filter(|pair| pair[1] == one)
                .map(|pair| pair[0])
                .collect();
            assert!(before.len() > 1, "{one} follows {before:?}: {orders:?}");
        }
        assert!(order(&all[..0], 3).is_empty());
    }
}
