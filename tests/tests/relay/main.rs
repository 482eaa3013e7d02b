//! Guests behind a relay: with daemons that come late, are replaced, or die.

use std::process::ExitCode;

use gangplank_tests::guest::Machine;
use gangplank_tests::promises;
use gangplank_tests::stage::Setting;
use gangplank_tests::tools;
use gangplank_tests::trials::Trials;

/// Promises that take minutes, and are kept by guests and daemons that have nothing between them as well.
const LONG: &[&str] = &["directory", "tree", "sequential"];

fn main() -> ExitCode {
    let mut trials = Trials::from_arguments();
    for (prefix, machine) in [
        ("uml_gangplankd", Machine::Uml),
        ("qemu_gangplankd", Machine::QemuX86_64),
    ] {
        let setting = Setting {
            is_relayed: true,
            program: None,
        };
        promises::run_in(&mut trials, prefix, machine, setting, LONG);
    }
    match tools::virtiofsd() {
        Ok(program) => {
            // It ends with its only guest, so that killing that is no use.
            let with_uml = &["killed"][..];
            let with_qemu = &[LONG, with_uml].concat();
            for (prefix, machine, except) in [
                ("uml_virtiofsd", Machine::Uml, with_uml),
                ("qemu_virtiofsd", Machine::QemuX86_64, with_qemu),
            ] {
                let setting = Setting {
                    is_relayed: true,
                    program: Some(program.clone()),
                };
                promises::run_in(&mut trials, prefix, machine, setting, except);
            }
        }
        Err(error) => trials.skip("virtiofsd", &format!("{error:#}")),
    }
    trials.finish()
}
