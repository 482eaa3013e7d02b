//! The scenarios of the device model. Each is named after what has to hold.

mod basic;
mod calls;
mod crash;
mod daemons;
mod emulated;
mod ending;
mod order;
mod reset;

use anyhow::{Context, Result};

use super::abi::{A, A_PRIME, Abi, B, B_PRIME};
use super::fixture::{Fixture, Programs, Server, Setup};

/// One scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// What has to hold.
    name: &'static str,
    /// The generations of the driver that it runs with.
    abis: &'static [Abi],
    /// The daemons that it runs with.
    servers: &'static [Server],
    run: fn(&Test) -> Result<()>,
}

/// The argument of a scenario.
pub struct Test {
    programs: Programs,
    /// One device with one request queue, of the chosen generation and with the chosen daemon.
    pub setup: Setup,
}

impl Test {
    /// Runs `work` in a fixture with this set-up. An error has the logs of all processes.
    ///
    /// # Errors
    /// What `work` finds.
    pub fn fixture(&self, setup: Setup, work: impl FnOnce(&Fixture) -> Result<()>) -> Result<()> {
        let fixture = Fixture::new(&self.programs, setup)?;
        work(&fixture).with_context(|| fixture.logs())
    }
}

const EVERY: &[Abi] = &[A, A_PRIME, B_PRIME, B];
const CURRENT: &[Abi] = &[A, B];
const BOTH: &[Server] = &[Server::Ours, Server::Theirs];
const OURS: &[Server] = &[Server::Ours];
const EVERY_SERVER: &[Server] = &[Server::Ours, Server::Theirs, Server::Tunnelled];

/// A scenario by its function, whose name is the scenario's.
macro_rules! scenario {
    ($module:ident::$name:ident, $abis:expr, $servers:expr) => {
        Scenario {
            name: stringify!($name),
            abis: $abis,
            servers: $servers,
            run: $module::$name,
        }
    };
}

/// All scenarios.
const ALL: &[Scenario] = &[
    scenario!(
        emulated::what_a_driver_would_not_survive_is_noticed,
        CURRENT,
        OURS
    ),
    scenario!(
        basic::guest_mounts_and_works_with_files,
        EVERY,
        EVERY_SERVER
    ),
    scenario!(
        basic::several_guests_work_at_once_each_with_its_own_share,
        CURRENT,
        OURS
    ),
    scenario!(
        basic::queues_tag_and_memory_are_as_configured,
        CURRENT,
        OURS
    ),
    scenario!(basic::processes_keep_what_they_need, CURRENT, OURS),
    scenario!(
        order::guest_model_and_daemon_start_in_any_order,
        CURRENT,
        EVERY_SERVER
    ),
    scenario!(
        reset::guest_resets_under_load_and_works_again,
        CURRENT,
        EVERY_SERVER
    ),
    scenario!(
        calls::wait_that_ends_without_an_access_is_begun_again,
        CURRENT,
        OURS
    ),
    scenario!(
        calls::refused_completion_is_not_repeated_and_ends_nothing,
        CURRENT,
        OURS
    ),
    scenario!(
        calls::access_that_makes_no_sense_is_completed,
        CURRENT,
        OURS
    ),
    scenario!(calls::stray_kick_is_nobodys, CURRENT, OURS),
    scenario!(
        daemons::guest_waits_for_a_late_daemon_in_its_queues_only,
        CURRENT,
        BOTH
    ),
    scenario!(
        daemons::mount_fails_in_time_without_a_daemon_and_the_driver_is_unbound,
        CURRENT,
        BOTH
    ),
    scenario!(
        daemons::guest_unbinds_from_a_killed_daemon_and_works_with_the_next,
        CURRENT,
        BOTH
    ),
    scenario!(
        daemons::guest_of_a_killed_daemon_mounts_anew_with_the_next,
        CURRENT,
        BOTH
    ),
    scenario!(
        daemons::guest_is_not_frozen_by_a_daemon_that_hangs,
        CURRENT,
        OURS
    ),
    scenario!(
        daemons::guest_is_told_of_a_daemon_that_hangs_from_the_start,
        CURRENT,
        OURS
    ),
    scenario!(
        crash::guest_goes_on_with_the_successor_of_a_killed_device_model,
        CURRENT,
        BOTH
    ),
    scenario!(
        crash::access_being_completed_by_a_killed_device_model_is_completed_once,
        CURRENT,
        OURS
    ),
    scenario!(
        crash::access_just_taken_by_a_killed_device_model_is_not_lost,
        CURRENT,
        OURS
    ),
    scenario!(
        crash::no_guest_notices_that_the_device_model_is_killed_under_load,
        CURRENT,
        OURS
    ),
    scenario!(
        crash::guest_of_a_daemon_that_died_while_there_was_no_device_model_is_not_stuck,
        CURRENT,
        OURS
    ),
    scenario!(
        crash::killed_holder_is_replaced_before_it_is_needed,
        CURRENT,
        OURS
    ),
    scenario!(crash::second_device_model_is_turned_away, CURRENT, OURS),
    scenario!(ending::sigterm_leaves_no_access_unanswered, CURRENT, OURS),
    scenario!(ending::failing_device_harms_no_other, CURRENT, OURS),
    scenario!(ending::status_is_told, CURRENT, OURS),
];

/// The scenarios with each generation and daemon, by name, as in `b::virtiofsd::scenario`.
pub fn each() -> impl Iterator<Item = (String, Scenario, Setup)> {
    ALL.iter().flat_map(|scenario| {
        scenario.abis.iter().flat_map(move |abi| {
            scenario.servers.iter().map(move |server| {
                let generation = abi.name.to_lowercase().replace('\'', "_prime");
                let daemon = match server {
                    Server::Ours => "gangplankd",
                    Server::Theirs => "virtiofsd",
                    Server::Tunnelled => "tunnel",
                };
                let name = format!("{generation}::{daemon}::{}", scenario.name);
                (
                    name,
                    *scenario,
                    Setup {
                        server: *server,
                        ..Setup::new(*abi)
                    },
                )
            })
        })
    })
}

/// Runs the scenario with the full name `name`, and ends every process that it started.
///
/// # Errors
/// What it finds; or there is none.
pub fn run(name: &str, programs: &Programs) -> Result<()> {
    let (_, scenario, setup) = each()
        .find(|(known, ..)| known == name)
        .with_context(|| format!("no scenario {name}"))?;
    super::fixture::adopt()?;
    let test = Test {
        programs: programs.clone(),
        setup,
    };
    let done = (scenario.run)(&test);
    super::fixture::end_all();
    done
}
