//! The suite that every kind of guest runs: each case is one function on a [`Fixture`].

mod data;
mod lifetime;
mod names;
mod no_open;
pub mod programs;

use anyhow::Result;

use crate::guest::Machine;
use crate::guest_fixture::{Fixture, Setting};
use crate::runner::Runner;

type Case = fn(&mut Fixture) -> Result<()>;

/// The cases by name, in an order in which earlier ones explain failures of later ones.
const CASES: &[(&str, Case)] = &[
    ("mount", lifetime::mounts_by_tag),
    ("create_read", names::files_are_created_and_read_both_ways),
    ("change", names::changes_show_on_the_other_side),
    ("rename_unlink", names::renames_and_unlinks_show_both_ways),
    ("kinds", names::every_kind_of_file_crosses),
    ("odd_names", names::odd_names_cross),
    ("directory", names::large_directory_lists_completely),
    ("tree", data::tree_survives_tar_and_diff),
    ("sequential", data::sequential_256_mib),
    ("programs", programs::checks_pass),
    ("programs_direct", programs::checks_pass_uncached),
    ("direct_dd", programs::direct_dd_works),
    ("remount", lifetime::remounts),
    ("reboot", lifetime::reboots),
    ("killed", lifetime::killed_guest_is_replaced),
];

/// Runs the case of a share that no process changes, in a guest of its own, as the test
/// `<prefix>::unopened`.
pub fn run_unchanging(runner: &mut Runner, prefix: &str, machine: Machine) {
    runner.run(&format!("{prefix}::unopened"), || {
        no_open::serves_what_is_not_opened(machine)
    });
}

/// Runs every case for `machine` as the tests `<prefix>::<case>`.
pub fn run(runner: &mut Runner, prefix: &str, machine: Machine) {
    run_in(runner, prefix, machine, Setting::default(), &[]);
}

/// The same in another setting, without the cases in `except`. Each promise of the setting is one
/// more case.
pub fn run_in(
    runner: &mut Runner,
    prefix: &str,
    machine: Machine,
    setting: Setting,
    except: &[&str],
) {
    type Work = Box<dyn Fn(&mut Fixture) -> Result<()>>;

    let cases = CASES.iter().filter(|(name, _)| !except.contains(name));
    let cases = cases.map(|&(name, case)| (name, Box::new(case) as Work));
    let promises = setting.promises.iter().map(|&(name, promise)| {
        let keeps: Work = Box::new(move |fixture| fixture.keeps(promise));
        (name, keeps)
    });
    let cases: Vec<(String, Work)> = cases
        .chain(promises)
        .map(|(name, work)| (format!("{prefix}::{name}"), work))
        .collect();
    if runner.lists_only() {
        for (name, _) in &cases {
            runner.run(name, || Ok(()));
        }
        return;
    }
    if !cases.iter().any(|(name, _)| runner.wants(name)) {
        return;
    }
    let mut fixture = match Fixture::with(machine, setting) {
        Ok(fixture) => fixture,
        Err(error) => {
            runner.run(&format!("{prefix}::start"), || Err(error));
            return;
        }
    };
    for (name, case) in &cases {
        runner.run(name, || {
            fixture.run(case)?;
            fixture.daemons_run()
        });
    }
}
