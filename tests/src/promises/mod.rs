//! What every kind of guest is promised, each as one function on a [`Stage`].

mod data;
mod lifetime;
mod names;
pub mod programs;
mod unopened;

use anyhow::Result;

use crate::guest::Machine;
use crate::stage::{Setting, Stage};
use crate::trials::Trials;

type Promise = fn(&mut Stage) -> Result<()>;

/// The promises by name, in an order in which the earlier explain failures of the later.
const PROMISES: &[(&str, Promise)] = &[
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

/// Runs what is promised of a share that nothing changes, in a guest of its own, as a trial named `<prefix>::unopened`.
pub fn run_unchanging(trials: &mut Trials, prefix: &str, machine: Machine) {
    trials.run(&format!("{prefix}::unopened"), || {
        unopened::serves_what_is_not_opened(machine)
    });
}

/// Runs every promise for `machine` as trials named `<prefix>::<promise>`.
pub fn run(trials: &mut Trials, prefix: &str, machine: Machine) {
    run_in(trials, prefix, machine, Setting::default(), &[]);
}

/// The same in another setting, without the promises in `except`.
pub fn run_in(
    trials: &mut Trials,
    prefix: &str,
    machine: Machine,
    setting: Setting,
    except: &[&str],
) {
    let promises: Vec<(String, Promise)> = PROMISES
        .iter()
        .filter(|(name, _)| !except.contains(name))
        .map(|(name, promise)| (format!("{prefix}::{name}"), *promise))
        .collect();
    if trials.lists_only() {
        for (name, _) in &promises {
            trials.run(name, || Ok(()));
        }
        return;
    }
    if !promises.iter().any(|(name, _)| trials.wants(name)) {
        return;
    }
    let mut stage = match Stage::with(machine, setting) {
        Ok(stage) => stage,
        Err(error) => {
            trials.run(&format!("{prefix}::start"), || Err(error));
            return;
        }
    };
    for (name, promise) in &promises {
        trials.run(name, || {
            promise(&mut stage)?;
            stage.daemons_run()
        });
    }
}
