//! Several guests on one daemon, guests that die, a daemon that ends, several queues, no root.

mod ends;
mod queues;
mod together;
mod unprivileged;

use std::process::ExitCode;

use gangplank_tests::process::User;
use gangplank_tests::trials::Trials;

fn main() -> ExitCode {
    let mut trials = Trials::from_arguments();
    trials.run("together::uml_and_qemu", together::see_each_others_files);
    trials.run(
        "together::killed_neighbour",
        together::one_is_killed_the_other_works_on,
    );
    trials.run("ends::sigterm", ends::sigterm_ends_cleanly);
    trials.run(
        "ends::exit_on_disconnect",
        ends::exits_with_its_guest_if_asked,
    );
    trials.run("queues::several", queues::several_request_queues_serve);
    trials.run(
        "queues::newer_programs",
        queues::newer_kernel_passes_the_checks,
    );
    let name = "unprivileged::uml";
    if User::is_root() {
        trials.run(name, || unprivileged::works(Some(User::NOBODY)));
    } else {
        trials.run(name, || unprivileged::works(None));
    }
    trials.finish()
}
