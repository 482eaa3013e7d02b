//! The suite of every guest in a User Mode Linux guest, for each way to run the daemon, and what
//! the options promise there. The program `guests` runs the suite with the defaults of root, and
//! `command_lines` tries the promises with root's default sandbox.
//!
//! An argument selects tests by a part of their name: `cargo test -p gangplank-tests --test modes --
//! user_none::`.

use std::process::ExitCode;

use gangplank_tests::guest::Machine;
use gangplank_tests::guest_fixture::Setting;
use gangplank_tests::guest_suite;
use gangplank_tests::process::User;
use gangplank_tests::promises::{self, Promise};
use gangplank_tests::runner::Runner;

/// Named promises of the daemon's options.
type Promises = &'static [(&'static str, Promise)];

/// What root's daemon promises.
const OF_ROOT: Promises = &[
    ("xattrs", promises::has_xattrs),
    ("acls", promises::has_acls),
    ("set_group_id", promises::acls_keep_set_group_id),
    ("owners", promises::users_own_files),
    ("host_locks", promises::has_locks_of_the_host),
];

/// What an ordinary user's daemon promises: all files are the user's.
const OF_USER: Promises = &[
    ("xattrs", promises::has_xattrs),
    ("acls", promises::has_acls),
    ("owners", promises::nobody_else_owns_files),
    ("host_locks", promises::has_locks_of_the_host),
];

/// The same in a namespace that has no other user.
const OF_USER_ALONE: Promises = &[
    ("xattrs", promises::has_xattrs),
    ("acls", promises::acls_name_no_other_user),
    ("owners", promises::nobody_else_owns_files),
    ("host_locks", promises::has_locks_of_the_host),
];

/// A way to run the daemon.
struct Mode {
    name: &'static str,
    is_root: bool,
    arguments: &'static [&'static str],
    promises: Promises,
}

const MODES: [Mode; 4] = [
    Mode {
        name: "root_chroot",
        is_root: true,
        arguments: &["--sandbox=chroot", "--posix-acl", "--locks=host"],
        promises: OF_ROOT,
    },
    Mode {
        name: "root_none",
        is_root: true,
        arguments: &["--sandbox=none", "--posix-acl", "--locks=host"],
        promises: OF_ROOT,
    },
    Mode {
        name: "user_namespace",
        is_root: false,
        arguments: &["--sandbox=namespace", "--posix-acl", "--locks=host"],
        promises: OF_USER_ALONE,
    },
    Mode {
        name: "user_none",
        is_root: false,
        arguments: &["--sandbox=none", "--posix-acl", "--locks=host"],
        promises: OF_USER,
    },
];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    for mode in MODES {
        if !User::is_root() && !runner.lists_only() {
            runner.skip(mode.name, "only root can run daemons as several users");
            continue;
        }
        let setting = Setting {
            arguments: mode.arguments,
            user: (!mode.is_root).then_some(User::NOBODY),
            is_brief: true,
            promises: mode.promises,
            ..Setting::default()
        };
        guest_suite::run_in(&mut runner, mode.name, Machine::Uml, setting, &[]);
    }
    runner.finish()
}
