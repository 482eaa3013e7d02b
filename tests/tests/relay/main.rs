//! Guests behind a relay: with daemons that come late, are replaced, or die.

mod hostile;
mod late;
mod lost;
mod place;
mod replaced;

use std::process::ExitCode;

use gangplank_tests::guest::Machine;
use gangplank_tests::promises;
use gangplank_tests::stage::Setting;
use gangplank_tests::tools;
use gangplank_tests::trials::Trials;

use place::Kind;

/// Promises that take minutes, and are kept by guests and daemons that have nothing between them as well.
const LONG: &[&str] = &["directory", "tree", "sequential"];

/// What makes virtiofsd answer requests in another order than they come in.
const POOL: &[&str] = &["--thread-pool-size=4"];

fn main() -> ExitCode {
    let mut trials = Trials::from_arguments();
    ours(&mut trials);
    match tools::virtiofsd() {
        Ok(_) => theirs(&mut trials),
        Err(error) => trials.skip("virtiofsd", &format!("{error:#}")),
    }
    trials.finish()
}

/// With gangplankd alone.
fn ours(trials: &mut Trials) {
    let setting = || Setting {
        is_relayed: true,
        program: None,
    };
    promises::run_in(trials, "uml_gangplankd", Machine::Uml, setting(), LONG);
    promises::run_in(
        trials,
        "qemu_gangplankd",
        Machine::QemuX86_64,
        setting(),
        LONG,
    );
    trials.run("hostile::messages", hostile::rubbish_harms_nobody);
    trials.run("hostile::rings", hostile::rings_of_nonsense_harm_nobody);
    trials.run("late::uml_gangplankd", || {
        late::guest_is_first(Machine::Uml, Kind::Gangplankd)
    });
    trials.run("late::tag", late::guest_waits_for_the_tag);
    trials.run("lost::uml_gangplankd", || {
        lost::guest_is_told(Machine::Uml, Kind::Gangplankd, &[])
    });
    trials.run("lost::qemu_gangplankd_pool", || {
        lost::guest_is_told(Machine::QemuX86_64, Kind::Gangplankd, POOL)
    });
    trials.run("lost::several", lost::several_guests);
    trials.run("lost::reset", lost::guest_starts_anew);
}

/// With virtiofsd.
fn theirs(trials: &mut Trials) {
    let setting = || Setting {
        is_relayed: true,
        program: tools::virtiofsd().ok(),
    };
    // It ends with its only guest, so that killing that is no use.
    let except = &["killed"];
    promises::run_in(trials, "uml_virtiofsd", Machine::Uml, setting(), except);
    let except = &[LONG, except].concat();
    let qemu = Machine::QemuX86_64;
    promises::run_in(trials, "qemu_virtiofsd", qemu, setting(), except);
    trials.run("late::qemu_virtiofsd", || {
        late::guest_is_first(qemu, Kind::Virtiofsd)
    });
    trials.run("replaced::uml_virtiofsd", || {
        replaced::under_load(Machine::Uml, Kind::Virtiofsd, &[])
    });
    trials.run("replaced::qemu_virtiofsd_pool", || {
        replaced::under_load(qemu, Kind::Virtiofsd, POOL)
    });
    trials.run("replaced::paused", || {
        replaced::while_paused(Machine::Uml, Kind::Virtiofsd, &[])
    });
    trials.run("replaced::not_possible", || {
        replaced::not_possible(Machine::Uml)
    });
    trials.run("replaced::without_state", || {
        lost::replaced_without_state(Machine::Uml)
    });
    trials.run("lost::uml_virtiofsd", || {
        lost::guest_is_told(Machine::Uml, Kind::Virtiofsd, &[])
    });
    trials.run("lost::qemu_virtiofsd", || {
        lost::guest_is_told(qemu, Kind::Virtiofsd, &[])
    });
}
