//! Several guests on one daemon, killed guests and processes of the daemon, the end of a daemon,
//! several queues, limits of a guest's rates, quotas, attributes of files, labels, sockets of a
//! service manager, no memory, no root.

mod activation;
mod ends;
mod file_attributes;
mod killed_processes;
mod labels;
mod migrations;
mod out_of_memory;
mod private_memory;
mod qemu_host;
mod qemu_versions;
mod queues;
mod quotas;
mod rate_limits;
mod together;
mod unprivileged;

use std::process::ExitCode;

use gangplank_tests::guest::{Memory, Qemu};
use gangplank_tests::process::User;
use gangplank_tests::runner::Runner;

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    runner.run("together::uml_and_qemu", together::see_each_others_files);
    runner.run(
        "together::killed_neighbour",
        together::one_is_killed_the_other_works_on,
    );
    runner.run(
        "together::killed_processes",
        killed_processes::each_process_is_killed,
    );
    runner.run("ends::sigterm", ends::sigterm_ends_cleanly);
    runner.run(
        "ends::exit_on_disconnect",
        ends::exits_with_its_guest_if_asked,
    );
    runner.run("queues::several", queues::several_request_queues_serve);
    runner.run(
        "queues::newer_programs",
        queues::newer_kernel_passes_the_checks,
    );
    runner.run(
        "activation::by_sockets",
        activation::sockets_of_a_service_manager_serve_a_guest,
    );
    runner.run(
        "limits::two_guests",
        rate_limits::two_guests_keep_their_limits,
    );
    runner.run("limits::quotas", quotas::shares_keep_their_quotas);
    runner.run("file_attributes::on_ext4", file_attributes::are_the_hosts);
    runner.run(
        "out_of_memory::workers_end",
        out_of_memory::ends_workers_alone,
    );
    runner.run("labels::selinux", labels::are_those_of_a_guest_with_selinux);
    for (name, qemu) in [("7_2", Qemu::Host), ("10_0", Qemu::Backports)] {
        runner.run(&format!("qemu_{name}::without_a_complaint"), || {
            qemu_versions::works_without_a_complaint(qemu)
        });
        runner.run(&format!("qemu_{name}::reboots"), || {
            qemu_versions::reboots_after_the_daemon_was_restarted(qemu)
        });
    }
    for (name, memory) in [
        ("private_file", Memory::PrivateFile),
        ("anonymous", Memory::Anonymous),
    ] {
        runner.run(&format!("private_memory::{name}"), || {
            private_memory::is_said_to_the_operator(memory)
        });
    }
    runner.run("qemu_10_0::migrates", migrations::live);
    let name = "unprivileged::uml";
    if User::is_root() {
        runner.run(name, || unprivileged::works(Some(User::NOBODY)));
    } else {
        runner.run(name, || unprivileged::works(None));
    }
    runner.finish()
}
