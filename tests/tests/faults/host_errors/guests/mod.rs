//! Compares a program on a failing host with the same program in a guest of a daemon that shares
//! it.

mod exceptions;
mod judge;
mod plan;
mod run;

use anyhow::{Context, Result, ensure};
use gangplank_tests::daemon::{Daemon, Options};
use gangplank_tests::driver::fixture;
use gangplank_tests::faulty_fs::{FaultyFs, HostCache, HostWrites};
use gangplank_tests::guest::{self, Guest, Machine};
use gangplank_tests::runner::Runner;
use gangplank_tests::tools;

use crate::is_long;
use plan::{Plan, plans};
use run::{Outcome, TraceSite};

/// How a guest's kernel uses a share: the daemon's options, and the comparable caches of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    name: &'static str,
    arguments: &'static [&'static str],
    cache: HostCache,
    writes: HostWrites,
}

impl Mode {
    /// Whether the guest writes the program's data later.
    fn writes_back(self) -> bool {
        self.cache == HostCache::Pages && self.has_writeback()
    }

    /// Whether the guest's kernel maintains times and sizes itself.
    fn has_writeback(self) -> bool {
        self.writes == HostWrites::Back
    }

    /// Whether all plans run in this mode, and not only some.
    fn runs_all(self) -> bool {
        is_long() || matches!(self.name, "never" | "auto" | "auto_writeback")
    }
}

/// One plan of this many runs in a mode that differs little from another.
const SOME: usize = 5;

/// All modes.
const MODES: [Mode; 6] = [
    Mode {
        name: "never",
        arguments: &["--cache=never"],
        cache: HostCache::None,
        writes: HostWrites::Through,
    },
    Mode {
        name: "auto",
        arguments: &["--cache=auto"],
        cache: HostCache::Pages,
        writes: HostWrites::Through,
    },
    Mode {
        name: "always",
        arguments: &["--cache=always"],
        cache: HostCache::Pages,
        writes: HostWrites::Through,
    },
    Mode {
        name: "never_writeback",
        arguments: &["--cache=never", "--writeback"],
        cache: HostCache::None,
        writes: HostWrites::Back,
    },
    Mode {
        name: "auto_writeback",
        arguments: &["--cache=auto", "--writeback"],
        cache: HostCache::Pages,
        writes: HostWrites::Back,
    },
    Mode {
        name: "always_writeback",
        arguments: &["--cache=always", "--writeback"],
        cache: HostCache::Pages,
        writes: HostWrites::Back,
    },
];

/// A guest with a share for each mode.
struct Fixture {
    guest: Guest,
    /// They live as long as the guest.
    _daemons: Vec<Daemon>,
    fs: FaultyFs,
}

impl Fixture {
    fn new() -> Result<Self> {
        let fs = FaultyFs::mount(HostCache::None, HostWrites::Through)?;
        let program = tools::io_trace(Machine::Uml.arch())?;
        let mut options = guest::Options::new(Machine::Uml).program("io-trace", &program);
        let mut daemons = Vec::new();
        for mode in MODES {
            let daemon = Options::new(fs.path())
                .tag(mode.name)
                .arguments(&["--xattr", "--allow-direct-io"])
                .arguments(mode.arguments);
            let daemon = Daemon::start(&daemon)?;
            fixture::wait_for_log(&daemon, "waiting for guests")?;
            options = options.share(daemon.socket(), mode.name);
            daemons.push(daemon);
        }
        let mut guest = Guest::boot(&options)?;
        for mode in MODES {
            guest.mount(mode.name, &format!("/mnt/{}", mode.name))?;
        }
        Ok(Self {
            guest,
            _daemons: daemons,
            fs,
        })
    }
}

/// Runs the tests of all modes.
pub(crate) fn run_all(runner: &mut Runner) {
    let name = |mode: Mode| format!("uml::{}", mode.name);
    if runner.lists_only() {
        for mode in MODES {
            runner.run(&name(mode), || Ok(()));
        }
        return;
    }
    if !MODES.iter().any(|mode| runner.wants(&name(*mode))) {
        return;
    }
    let all = plans(if is_long() { 40 } else { 2 });
    let mut fixture = None;
    let mut baselines = Vec::new();
    for (number, mode) in (1..).zip(MODES) {
        runner.run(&name(mode), || {
            let fixture = match &mut fixture {
                Some(fixture) => fixture,
                empty => empty.insert(Fixture::new()?),
            };
            let plans = if mode.runs_all() {
                all.clone()
            } else {
                some(&all)
            };
            let on_host = baseline(&mut baselines, &plans, mode)?;
            let directory = format!("/mnt/{}", mode.name);
            let site = TraceSite::Guest(&mut fixture.guest, &directory);
            let in_guest = run::run(fixture.fs.control(), &plans, number, site)
                .with_context(|| format!("in the guest, {}", mode.name))?;
            compare(mode, &plans, on_host, &in_guest)
        });
    }
}

/// Some of the plans, and all plans without a fault, which are needed for comparison.
fn some(plans: &[Plan]) -> Vec<Plan> {
    let chosen = plans
        .iter()
        .enumerate()
        .filter(|(index, plan)| plan.fault.is_none() || index % SOME == 0);
    let renumbered = chosen.zip(0..).map(|((_, plan), id)| plan.numbered(id));
    renumbered.collect()
}

/// The caches of a run on the host, and its outcomes.
type Baseline = (HostCache, HostWrites, usize, Vec<Outcome>);

/// The outcomes on the host in a mode.
fn baseline<'a>(known: &'a mut Vec<Baseline>, plans: &[Plan], mode: Mode) -> Result<&'a [Outcome]> {
    let (cache, writes) = (mode.cache, mode.writes);
    let at = known
        .iter()
        .position(|(has, does, count, _)| (*has, *does, *count) == (cache, writes, plans.len()));
    let at = match at {
        Some(at) => at,
        None => {
            let fs = FaultyFs::mount(cache, writes)?;
            let outcomes = run::run(fs.control(), plans, 0, TraceSite::Host(fs.path()))
                .with_context(|| format!("on the host, {cache:?}, {writes:?}"))?;
            known.push((cache, writes, plans.len(), outcomes));
            known.len() - 1
        }
    };
    Ok(&known[at].3)
}

/// Limit of wrong runs that one test prints.
const TOLD: usize = 12;

fn compare(mode: Mode, plans: &[Plan], on_host: &[Outcome], in_guest: &[Outcome]) -> Result<()> {
    let mut wrong = Vec::new();
    for ((plan, host), guest) in plans.iter().zip(on_host).zip(in_guest) {
        let without_fault = judge::without_fault(plan, plans, on_host)?;
        let checks = [
            judge::check_always(mode, plan, guest),
            judge::check_reread(mode, plan, guest),
            judge::check_expected(mode, plan, host, without_fault, guest),
        ];
        for error in checks.into_iter().filter_map(Result::err) {
            wrong.push(format!("{} with {:?}: {error:#}", plan.case, plan.fault));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} runs of {} are wrong, such as\n{}",
        wrong.len(),
        plans.len(),
        wrong[..wrong.len().min(TOLD)].join("\n")
    );
    Ok(())
}
