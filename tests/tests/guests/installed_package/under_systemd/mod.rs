//! The installed units under systemd: a machine whose first process it is, with the package
//! installed by dpkg. The tests share the machine, and the last one removes the package.

mod deaths;
mod first_minute;
mod sockets;
mod system;
mod units;

use anyhow::{Result, anyhow};
use gangplank_tests::packages::Suite;
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;

use system::System;

type Test = fn(&mut System) -> Result<()>;

const TESTS: [(&str, Test); 20] = [
    (
        "unit_is_active_once_the_daemon_serves",
        first_minute::unit_is_active_once_the_daemon_serves,
    ),
    (
        "journal_has_priorities_and_fields",
        first_minute::journal_has_priorities_and_fields,
    ),
    (
        "missing_directory_is_named_and_served_once_it_is_there",
        first_minute::missing_directory_is_named_and_served_once_it_is_there,
    ),
    (
        "wrong_option_is_named_and_not_tried_again",
        first_minute::wrong_option_is_named_and_not_tried_again,
    ),
    (
        "limits_are_those_of_the_unit",
        first_minute::limits_are_those_of_the_unit,
    ),
    (
        "guest_goes_on_when_its_worker_or_the_acceptor_is_killed",
        deaths::guest_goes_on_when_its_worker_or_the_acceptor_is_killed,
    ),
    (
        "guest_whose_keeper_is_killed_ends_alone",
        deaths::guest_whose_keeper_is_killed_ends_alone,
    ),
    (
        "guest_goes_on_over_a_reload",
        deaths::guest_goes_on_over_a_reload,
    ),
    (
        "guest_goes_on_over_restarts",
        deaths::guest_goes_on_over_restarts,
    ),
    (
        "guest_goes_on_when_everything_is_killed",
        deaths::guest_goes_on_when_everything_is_killed,
    ),
    (
        "guest_goes_on_when_others_than_systemd_end_the_daemon",
        deaths::guest_goes_on_when_others_than_systemd_end_the_daemon,
    ),
    (
        "guest_goes_on_when_the_watchdog_ends_a_stopped_daemon",
        deaths::guest_goes_on_when_the_watchdog_ends_a_stopped_daemon,
    ),
    ("stop_ends_guests", deaths::stop_ends_guests),
    (
        "daemon_starts_with_its_first_guest_and_ends_with_its_last",
        sockets::daemon_starts_with_its_first_guest_and_ends_with_its_last,
    ),
    (
        "relay_serves_guests_of_its_daemon",
        sockets::relay_serves_guests_of_its_daemon,
    ),
    (
        "relay_starts_with_its_first_guest",
        sockets::relay_starts_with_its_first_guest,
    ),
    (
        "shares_of_files_are_served",
        units::shares_of_files_are_served,
    ),
    (
        "bridges_serve_by_the_shipped_examples",
        units::bridges_serve_by_the_shipped_examples,
    ),
    (
        "missing_configuration_is_named_and_not_tried_again",
        units::missing_configuration_is_named_and_not_tried_again,
    ),
    (
        "systemd_itself_finds_the_units_right_and_tight",
        units::systemd_itself_finds_the_units_right_and_tight,
    ),
];

/// Removes the package, so it comes last.
const LAST: (&str, Test) = (
    "purge_stops_everything_and_leaves_nothing",
    units::purge_stops_everything_and_leaves_nothing,
);

/// Runs the tests. With `GANGPLANK_LONG=1` also with another version of systemd.
pub(crate) fn run(runner: &mut Runner) {
    run_with(runner, "systemd", Suite::Host);
    let name = "systemd_of_backports";
    if std::env::var_os("GANGPLANK_LONG").is_some() {
        run_with(runner, name, Suite::Backports);
    }
}

fn run_with(runner: &mut Runner, version: &str, suite: Suite) {
    // `Err` once it did not boot: the others need not try.
    let mut system: Option<Result<System, String>> = None;
    for (name, test) in TESTS.into_iter().chain([LAST]) {
        let name = format!("{version}::{name}");
        if !User::is_root() {
            runner.skip(&name, "needs root");
            continue;
        }
        runner.run(&name, || {
            let booted = || System::boot(suite).map_err(|error| format!("{error:#}"));
            let system = system.get_or_insert_with(booted).as_mut();
            let system = system.map_err(|error| anyhow!("no machine: {error}"))?;
            system.clear()?;
            test(system).map_err(|error| {
                let journal = system.journal();
                error.context(journal)
            })
        });
    }
}
