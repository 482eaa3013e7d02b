//! Every promise in every stock guest: User Mode Linux, QEMU x86_64, QEMU aarch64.
//!
//! One guest per machine serves all of that machine's trials but the last. A name as argument picks trials:
//! `cargo test -p gangplank-tests --test guests -- uml::`.

use std::process::ExitCode;

use gangplank_tests::guest::Machine;
use gangplank_tests::promises;
use gangplank_tests::trials::Trials;

fn main() -> ExitCode {
    let mut trials = Trials::from_arguments();
    promises::run(&mut trials, "uml", Machine::Uml);
    promises::run(&mut trials, "qemu_x86_64", Machine::QemuX86_64);
    promises::run(&mut trials, "qemu_aarch64", Machine::QemuAarch64);
    promises::run_unchanging(&mut trials, "uml", Machine::Uml);
    promises::run_unchanging(&mut trials, "qemu_x86_64", Machine::QemuX86_64);
    trials.finish()
}
