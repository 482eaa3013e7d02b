//! The contents of a Bao VM configuration, as compiled by a C compiler.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use gangplank_tests::cache;

use crate::{Range, run};

/// The generation of names in a configuration.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Names {
    Current,
    /// Those of May to August 2024.
    Older,
}

#[derive(Debug, Default)]
pub(crate) struct Configuration {
    /// Sizes of the shared regions, by number.
    pub(crate) shared: Vec<u64>,
    pub(crate) vms: Vec<Vm>,
}

#[derive(Debug, Default)]
pub(crate) struct Vm {
    pub(crate) base: u64,
    pub(crate) entry: u64,
    pub(crate) affinity: u64,
    pub(crate) cpus: u64,
    pub(crate) image: String,
    /// Distributor and redistributors.
    pub(crate) gic: [u64; 2],
    pub(crate) memory: Vec<Memory>,
    pub(crate) devices: Vec<Device>,
    pub(crate) remotes: Vec<Remote>,
}

#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) range: Range,
    /// Its physical address, if the configuration has one.
    pub(crate) placed: Option<u64>,
}

/// A device of the machine that is passed through.
#[derive(Debug)]
pub(crate) struct Device {
    /// Its physical range. Its address in the VM is the same.
    pub(crate) range: Range,
    pub(crate) interrupts: Vec<u32>,
}

#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) is_backend: bool,
    pub(crate) key: u64,
    pub(crate) interrupt: u32,
    pub(crate) window: Range,
    pub(crate) shared: Range,
    pub(crate) shared_id: usize,
}

impl Configuration {
    /// Compiles the configuration into a program that prints it, and parses the output.
    pub(crate) fn load(file: &Path, names: Names) -> Result<Self> {
        let here = cache::workspace().join("tests/tests/guests/bao_files");
        let place = tempfile::tempdir()?;
        let program = place.path().join("print");
        let mut compile = Command::new("cc");
        compile
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(&here)
            .arg(format!("-DCONFIGURATION=\"{}\"", file.display()))
            .arg("-DBAO_DEMOS_WRKDIR_IMGS=/images")
            .arg("-o")
            .arg(&program)
            .arg(here.join("print.c"));
        if names == Names::Older {
            compile.arg("-DBAO_OLDER_NAMES");
        }
        let complaints = run(&mut compile)?;
        ensure!(complaints.is_empty(), "{}: {complaints}", file.display());
        Self::parse(&run(&mut Command::new(program))?)
            .with_context(|| format!("what {} says", file.display()))
    }

    fn parse(printed: &str) -> Result<Self> {
        let mut all = Self::default();
        for line in printed.lines() {
            let (kind, rest) = line.split_once(' ').context("a line of one word")?;
            let numbers: Result<Vec<u64>> = rest.split(' ').map(number).collect();
            match (kind, all.vms.last_mut()) {
                ("shared", None) => all.shared.extend(numbers?),
                ("vm", _) => {
                    let [base, entry, affinity, cpus] = exactly(&numbers?)?;
                    all.vms.push(Vm {
                        base,
                        entry,
                        affinity,
                        cpus,
                        ..Vm::default()
                    });
                }
                ("image", Some(vm)) => vm.image = rest.to_owned(),
                ("gic", Some(vm)) => vm.gic = exactly(&numbers?)?,
                ("memory", Some(vm)) => {
                    let [base, size, placed, phys] = exactly(&numbers?)?;
                    vm.memory.push(Memory {
                        range: Range(base, size),
                        placed: (placed == 1).then_some(phys),
                    });
                }
                ("device", Some(vm)) => {
                    let numbers = numbers?;
                    let [pa, va, size] = exactly(numbers.get(..3).unwrap_or_default())?;
                    ensure!(pa == va, "{line}: moved");
                    let interrupts = numbers.iter().skip(3).map(|&n| u32::try_from(n));
                    vm.devices.push(Device {
                        range: Range(pa, size),
                        interrupts: interrupts.collect::<Result<_, _>>()?,
                    });
                }
                ("remote", Some(vm)) => {
                    let [backend, key, interrupt, va, size, base, len, id] = exactly(&numbers?)?;
                    vm.remotes.push(Remote {
                        is_backend: backend == 1,
                        key,
                        interrupt: u32::try_from(interrupt)?,
                        window: Range(va, size),
                        shared: Range(base, len),
                        shared_id: usize::try_from(id)?,
                    });
                }
                _ => bail!("{line}: out of place"),
            }
        }
        Ok(all)
    }
}

fn exactly<const N: usize>(numbers: &[u64]) -> Result<[u64; N]> {
    numbers
        .try_into()
        .with_context(|| format!("not {N} numbers: {numbers:?}"))
}

fn number(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.with_context(|| format!("{text:?} is no number"))
}
