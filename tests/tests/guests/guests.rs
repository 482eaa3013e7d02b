//! The suite of every guest, in every stock guest: User Mode Linux, QEMU x86_64, QEMU aarch64.
//!
//! The tests of a machine share one guest, except the last. An argument selects tests by a part of
//! their name: `cargo test -p gangplank-tests --test guests -- uml::`. User Mode Linux has the
//! large files, trees and directories, and with `GANGPLANK_LONG=1` the slower machines have them as
//! well.

use std::process::ExitCode;

use gangplank_tests::guest::Machine;
use gangplank_tests::guest_fixture::Setting;
use gangplank_tests::guest_suite;
use gangplank_tests::runner::Runner;

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    guest_suite::run(&mut runner, "uml", Machine::Uml);
    for (name, machine) in [
        ("qemu_x86_64", Machine::QemuX86_64),
        ("qemu_aarch64", Machine::QemuAarch64),
    ] {
        let setting = Setting {
            is_brief: std::env::var_os("GANGPLANK_LONG").is_none(),
            ..Setting::default()
        };
        guest_suite::run_in(&mut runner, name, machine, setting, &[]);
    }
    guest_suite::run_unchanging(&mut runner, "uml", Machine::Uml);
    guest_suite::run_unchanging(&mut runner, "qemu_x86_64", Machine::QemuX86_64);
    runner.finish()
}
