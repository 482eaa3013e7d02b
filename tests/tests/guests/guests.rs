//! The suite of every guest, in every stock guest: User Mode Linux, QEMU x86_64, QEMU aarch64.
//!
//! The tests of a machine share one guest, except the last. An argument selects tests by a part of
//! their name: `cargo test -p gangplank-tests --test guests -- uml::`.

use std::process::ExitCode;

use gangplank_tests::guest::Machine;
use gangplank_tests::guest_suite;
use gangplank_tests::runner::Runner;

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    guest_suite::run(&mut runner, "uml", Machine::Uml);
    guest_suite::run(&mut runner, "qemu_x86_64", Machine::QemuX86_64);
    guest_suite::run(&mut runner, "qemu_aarch64", Machine::QemuAarch64);
    guest_suite::run_unchanging(&mut runner, "uml", Machine::Uml);
    guest_suite::run_unchanging(&mut runner, "qemu_x86_64", Machine::QemuX86_64);
    runner.finish()
}
