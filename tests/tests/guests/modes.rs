//! The suite of every guest in a User Mode Linux guest, for each way to run the daemon. The program
//! `guests` runs it with the defaults of root.
//!
//! An argument selects tests by a part of their name: `cargo test -p gangplank-tests --test modes --
//! user_none::`.

use std::process::ExitCode;

use gangplank_tests::guest::Machine;
use gangplank_tests::guest_fixture::Setting;
use gangplank_tests::guest_suite;
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;

/// Name, whether root runs the daemon, and the daemon's arguments.
const MODES: [(&str, bool, &[&str]); 4] = [
    ("root_chroot", true, &["--sandbox=chroot"]),
    ("root_none", true, &["--sandbox=none"]),
    ("user_namespace", false, &["--sandbox=namespace"]),
    ("user_none", false, &["--sandbox=none"]),
];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    for (name, is_root, arguments) in MODES {
        if !User::is_root() && !runner.lists_only() {
            runner.skip(name, "only root can run daemons as several users");
            continue;
        }
        let setting = Setting {
            arguments,
            user: (!is_root).then_some(User::NOBODY),
            is_brief: true,
            ..Setting::default()
        };
        guest_suite::run_in(&mut runner, name, Machine::Uml, setting, &[]);
    }
    runner.finish()
}
