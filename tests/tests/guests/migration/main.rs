//! A guest's state in virtiofsd's migration stream: streams of the real virtiofsd are read by our
//! decoder, and streams of our encoder by the real virtiofsd, whose guest goes on.

mod fixture;
mod virtiofsd;

use std::process::ExitCode;

use gangplank_tests::runner::Runner;
use gangplank_tests::tools;

fn main() -> ExitCode {
    let mut runner = Runner::from_arguments();
    match tools::virtiofsd() {
        Ok(_) => {
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
