//! Guests behind a relay, with daemons that start late, are replaced, or die.

mod fixture;
mod hostile;
mod late;
mod lost;
mod migrated;
mod replaced;

use std::process::ExitCode;

use gangplank_tests::guest::Machine;
use gangplank_tests::guest_fixture::Setting;
use gangplank_tests::guest_suite;
use gangplank_tests::runner::Runner;
use gangplank_tests::tools;

use fixture::Kind;
use migrated::Mode;

/// Cases of the suite that take minutes and that the tests without a relay cover.
const LONG: &[&str] = &["directory", "tree", "sequential"];

/// The option that makes virtiofsd reply in another order than the requests'.
const POOL: &[&str] = &["--thread-pool-size=4"];

/// The option by which virtiofsd takes a state in which it could not describe a file: one that the
/// guest has removed and still remembers. By default it refuses the whole state.
const TAKE_REMOVED: &str = "--migration-on-error=guest-error";

/// How a guest's files are found, by name.
const MODES: [(&str, Mode); 2] = [("paths", Mode::FindPaths), ("handles", Mode::FileHandles)];

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    ours(&mut runner);
    match tools::virtiofsd() {
        Ok(_) => theirs(&mut runner),
        Err(error) => runner.skip("virtiofsd", &format!("{error:#}")),
    }
    runner.finish()
}

/// With gangplankd alone.
fn ours(runner: &mut Runner) {
    let setting = || Setting {
        is_relayed: true,
        ..Setting::default()
    };
    guest_suite::run_in(runner, "uml_gangplankd", Machine::Uml, setting(), LONG);
    guest_suite::run_in(
        runner,
        "qemu_gangplankd",
        Machine::QemuX86_64,
        setting(),
        LONG,
    );
    runner.run("hostile::messages", hostile::rubbish_harms_nobody);
    runner.run("hostile::rings", hostile::rings_of_nonsense_harm_nobody);
    runner.run("late::uml_gangplankd", || {
        late::guest_is_first(Machine::Uml, Kind::Gangplankd)
    });
    runner.run("late::tag", late::guest_waits_for_the_tag);
    runner.run("lost::uml_gangplankd", || {
        lost::guest_is_told(Machine::Uml, Kind::Gangplankd, &[])
    });
    runner.run("lost::qemu_gangplankd_pool", || {
        lost::guest_is_told(Machine::QemuX86_64, Kind::Gangplankd, POOL)
    });
    runner.run("lost::several", lost::several_guests);
    runner.run("lost::reset", lost::guest_starts_anew);
    runner.run("replaced::uml_gangplankd", || {
        replaced::under_load(Machine::Uml, Kind::Gangplankd, &[TAKE_REMOVED])
    });
    runner.run("replaced::gangplankd_paused", || {
        replaced::while_paused(Machine::Uml, Kind::Gangplankd, &[TAKE_REMOVED])
    });
    runner.run("migrated::another_tree", || {
        migrated::to_another_tree(Machine::Uml, &[Kind::Gangplankd])
    });
    for (name, mode) in MODES {
        runner.run(&format!("migrated::gangplankd_{name}"), || {
            migrated::under_load(Machine::Uml, &[Kind::Gangplankd], mode)
        });
    }
}

/// With virtiofsd.
fn theirs(runner: &mut Runner) {
    let setting = || Setting {
        is_relayed: true,
        program: tools::virtiofsd().ok(),
        ..Setting::default()
    };
    // virtiofsd ends with its only guest, so the case of a killed guest does not apply.
    let except = &["killed"];
    guest_suite::run_in(runner, "uml_virtiofsd", Machine::Uml, setting(), except);
    let qemu = Machine::QemuX86_64;
    let is_long = std::env::var_os("GANGPLANK_LONG").is_some();
    // gangplankd's suite shows QEMU behind a relay, and the one above virtiofsd.
    if is_long {
        let except = &[LONG, except].concat();
        guest_suite::run_in(runner, "qemu_virtiofsd", qemu, setting(), except);
    }
    runner.run("late::qemu_virtiofsd", || {
        late::guest_is_first(qemu, Kind::Virtiofsd)
    });
    runner.run("replaced::uml_virtiofsd", || {
        replaced::under_load(Machine::Uml, Kind::Virtiofsd, &[TAKE_REMOVED])
    });
    runner.run("replaced::qemu_virtiofsd_pool", || {
        replaced::under_load(qemu, Kind::Virtiofsd, &[POOL, &[TAKE_REMOVED]].concat())
    });
    for (name, mode) in MODES {
        let kinds = [Kind::Virtiofsd, Kind::Gangplankd, Kind::Gangplankd];
        runner.run(&format!("migrated::both_{name}"), || {
            migrated::under_load(Machine::Uml, &kinds, mode)
        });
    }
    runner.run("migrated::both_to_another_tree", || {
        let kinds = [Kind::Gangplankd, Kind::Virtiofsd, Kind::Gangplankd];
        migrated::to_another_tree(Machine::Uml, &kinds)
    });
    runner.run("replaced::paused", || {
        replaced::while_paused(Machine::Uml, Kind::Virtiofsd, &[TAKE_REMOVED])
    });
    runner.run("replaced::not_possible", || {
        replaced::not_possible(Machine::Uml)
    });
    runner.run("replaced::without_state", || {
        lost::replaced_without_state(Machine::Uml)
    });
    runner.run("lost::uml_virtiofsd", || {
        lost::guest_is_told(Machine::Uml, Kind::Virtiofsd, &[])
    });
    if is_long {
        runner.run("lost::qemu_virtiofsd", || {
            lost::guest_is_told(qemu, Kind::Virtiofsd, &[])
        });
    }
}
