//! A share on distributed storage: MooseFS, mounted on two hosts with a daemon and a guest each.
//!
//! `GANGPLANK_LONG=1` hands locks over more often and works for longer. Needs root, `/dev/fuse` and
//! Debian's packages of MooseFS.

mod cut;
mod failures;
mod fixture;
mod moved;
mod shared;

use std::path::Path;
use std::process::ExitCode;

use gangplank_tests::moosefs::Programs;
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;

use fixture::Fixture;

/// A test that uses the same hosts and guests as the others.
type Test = fn(&mut Fixture) -> anyhow::Result<()>;

/// The tests in their order. Between them, the host drops what it has cached of files.
const TESTS: &[(&str, Test)] = &[
    ("storage_is_told", fixture::storage_is_told),
    ("changes_are_seen", shared::changes_are_seen),
    ("open_files_stay", shared::open_files_stay),
    (
        "open_files_of_a_host_stay",
        shared::open_files_of_a_host_stay,
    ),
    ("locks_are_handed_over", shared::locks_are_handed_over),
    ("a_host_counts_too", shared::a_host_counts_too),
    ("sqlite", shared::one_database),
    ("fsx_with_locks", shared::fsx_takes_turns),
    ("chunk_server_killed", failures::chunk_server_killed),
    ("master_killed", failures::master_killed),
    ("host_cut_off", cut::host_cut_off),
    ("guest_moves", moved::guest_moves_to_the_other_host),
];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    if runner.lists_only() {
        for (name, _) in TESTS {
            runner.run(name, || Ok(()));
        }
        return runner.finish();
    }
    if !User::is_root() || !Path::new("/dev/fuse").exists() {
        runner.skip("distributed", "needs root and /dev/fuse");
        return runner.finish();
    }
    let programs = match Programs::fetch() {
        Ok(programs) => programs,
        Err(error) => {
            runner.skip("distributed", &format!("MooseFS cannot be had: {error:#}"));
            return runner.finish();
        }
    };
    if !TESTS.iter().any(|(name, _)| runner.wants(name)) {
        return runner.finish();
    }
    let mut fixture = match Fixture::new(&programs) {
        Ok(fixture) => fixture,
        Err(error) => {
            let wanted = TESTS.iter().find(|(name, _)| runner.wants(name));
            let name = wanted.map_or("boot", |(name, _)| *name);
            runner.run(name, || Err(error));
            return runner.finish();
        }
    };
    for (name, test) in TESTS {
        runner.run(name, || {
            fixture.drop_caches()?;
            let result = test(&mut fixture);
            result.map_err(|error| error.context(fixture.logs()))
        });
    }
    drop(fixture);
    runner.finish()
}

/// A number for the short form, or one with `GANGPLANK_LONG`.
fn short_or_long(short: u32, long: u32) -> u32 {
    match std::env::var_os("GANGPLANK_LONG") {
        Some(_) => long,
        None => short,
    }
}
