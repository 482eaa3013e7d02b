//! A guest's virtqueues over DVK: the suite of guests through a tunnel at a switch, and a guest
//! whose daemon is on another host. The other host needs root. `GANGPLANK_LONG=1` runs the suite at
//! its whole size, and in QEMU as well.

mod drivers;
mod hostile;
mod hosts;
mod pages;
mod peer;

use std::process::ExitCode;

use gangplank_tests::guest::Machine;
use gangplank_tests::guest_fixture::Setting;
use gangplank_tests::guest_suite;
use gangplank_tests::runner::Runner;

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    hostile::run(&mut runner);
    drivers::run(&mut runner);
    runner.run(
        "qemu_aarch64::a_guest_with_pages_of_16_kib_reads_and_writes_whole_files",
        pages::a_guest_with_pages_of_16_kib_reads_and_writes_whole_files,
    );
    hosts::run(&mut runner, "uml_hosts", Machine::Uml);
    hosts::run(&mut runner, "qemu_hosts", Machine::QemuX86_64);
    let is_long = std::env::var_os("GANGPLANK_LONG").is_some();
    let setting = Setting {
        is_tunnelled: true,
        is_brief: !is_long,
        ..Setting::default()
    };
    guest_suite::run_in(&mut runner, "uml", Machine::Uml, setting.clone(), &[]);
    if is_long {
        guest_suite::run_in(&mut runner, "qemu", Machine::QemuX86_64, setting, &[]);
    }
    runner.finish()
}
