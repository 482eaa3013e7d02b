//! A failing host: every failed read and write is reported, and no acknowledged data is missing.
//!
//! `GANGPLANK_FAULTS_LONG=1` runs the random tests for longer, and `GANGPLANK_FAULTS_SEED` sets
//! their seed. Needs root and `/dev/fuse`.

mod fixture;
mod guests;
mod model;
mod reports;
mod storage;
mod transfers;

use std::path::Path;
use std::process::ExitCode;

use gangplank_tests::process::User;
use gangplank_tests::runner::{self, Runner};

use fixture::Kind;

/// The default seed.
const SEED: u64 = 0x676e_676c;

/// The seed of the random tests.
fn seed() -> u64 {
    let told = std::env::var("GANGPLANK_FAULTS_SEED").ok();
    told.and_then(|text| text.parse().ok()).unwrap_or(SEED)
}

/// Whether the random tests run for longer.
fn is_long() -> bool {
    std::env::var_os("GANGPLANK_FAULTS_LONG").is_some()
}

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    if !User::is_root() || !Path::new("/dev/fuse").exists() {
        runner.skip("faults", "needs root and /dev/fuse");
        return runner.finish();
    }
    if !runner.lists_only() {
        runner::note(&format!("GANGPLANK_FAULTS_SEED={}", seed()));
    }
    for kind in Kind::ALL {
        runner.run(&format!("driver::{}::at_a_byte", kind.name()), || {
            transfers::a_fault_at_a_byte_is_told(kind)
        });
        runner.run(&format!("driver::{}::random", kind.name()), || {
            transfers::random_faults_are_told(kind)
        });
    }
    runner.run("driver::in_flight", || {
        transfers::transfers_in_flight_are_answered_right(&[])
    });
    runner.run("driver::in_flight_with_thread_pool", || {
        transfers::transfers_in_flight_are_answered_right(&["--thread-pool-size=2"])
    });
    for (name, test) in reports::TESTS {
        runner.run(&format!("driver::{name}"), test);
    }
    for (name, test) in storage::TESTS {
        runner.run(&format!("storage::{name}"), test);
    }
    guests::run_all(&mut runner);
    runner.finish()
}
