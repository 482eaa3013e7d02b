//! A guest that moves between daemons: gangplankd, and the real virtiofsd. Streams of virtiofsd are
//! read by our decoder, and streams of our encoder by virtiofsd, whose guest goes on.

mod events;
mod fixture;
mod gangplankd;
mod scripted;
mod table;
mod virtiofsd;

use std::process::ExitCode;

use gangplank_tests::runner::Runner;
use gangplank_tests::tools;

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    runner.run(
        "guest_goes_on_at_another_tree",
        gangplankd::guest_goes_on_at_another_tree,
    );
    runner.run(
        "guest_goes_on_by_file_handles_at_gangplankd",
        gangplankd::guest_goes_on_by_file_handles,
    );
    runner.run(
        "guest_stays_when_its_migration_is_given_up",
        gangplankd::guest_stays_when_its_migration_is_given_up,
    );
    runner.run(
        "gangplankd_refuses_a_guest_with_a_lost_file",
        gangplankd::lost_file_refuses_the_guest,
    );
    runner.run(
        "file_handles_are_opened_only_if_asked_for",
        gangplankd::file_handles_are_opened_only_if_asked_for,
    );
    runner.run(
        "changed_files_are_found_or_refused",
        table::changed_files_are_found_or_refused,
    );
    runner.run(
        "pages_are_marked_while_log_all_is_set",
        scripted::pages_are_marked_while_log_all_is_set,
    );
    runner.run(
        "pages_are_marked_after_a_death",
        scripted::pages_are_marked_after_a_death,
    );
    runner.run(
        "bitmap_beyond_its_file_is_refused",
        scripted::bitmap_beyond_its_file_is_refused,
    );
    runner.run(
        "state_is_asked_for_in_any_order",
        scripted::state_is_asked_for_in_any_order,
    );
    runner.run(
        "dead_worker_gives_the_migration_up",
        scripted::dead_worker_gives_the_migration_up,
    );
    runner.run(
        "reader_of_changes_is_told_to_look_again_and_its_waker_changes_nothing",
        events::reader_is_told_to_look_again_and_its_waker_changes_nothing,
    );
    match tools::virtiofsd() {
        Ok(_) => {
            runner.run(
                "guest_comes_from_virtiofsd_and_goes_back",
                gangplankd::guest_comes_from_virtiofsd_and_goes_back,
            );
            runner.run(
                "guest_goes_to_virtiofsd_and_comes_back",
                gangplankd::guest_goes_to_virtiofsd_and_comes_back,
            );
            runner.run(
                "guest_without_a_session_begins_one",
                gangplankd::guest_without_a_session_begins_one,
            );
            runner.run(
                "stream_by_paths_is_read_whole",
                virtiofsd::stream_by_paths_is_read_whole,
            );
            runner.run(
                "stream_by_file_handles_is_read_whole",
                virtiofsd::stream_by_file_handles_is_read_whole,
            );
            runner.run(
                "guest_that_has_not_mounted_is_empty",
                virtiofsd::guest_that_has_not_mounted_is_empty,
            );
            runner.run("guest_goes_on_by_paths", virtiofsd::guest_goes_on_by_paths);
            runner.run(
                "lost_file_refuses_the_guest",
                virtiofsd::lost_file_refuses_the_guest,
            );
            runner.run(
                "guest_goes_on_by_file_handles",
                virtiofsd::guest_goes_on_by_file_handles,
            );
            runner.run(
                "replaced_file_is_found_out_by_its_handle",
                virtiofsd::replaced_file_is_found_out_by_its_handle,
            );
        }
        Err(error) => runner.skip("virtiofsd", &format!("{error:#}")),
    }
    runner.finish()
}
