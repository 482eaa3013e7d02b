//! `gangplank-nfs`: parses the command line and runs the command.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use gangplank_nfs::args::{Args, Command};
use gangplank_nfs::serve::{self, ServeError};
use gangplank_service::{error_chain, logging, signals};

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = std::env::var("RUST_LOG").ok();
    let options = logging::Options::chosen("gangplank-nfs", args.log_level, filter);
    if let Err(error) = logging::start(&options) {
        return fail(&error_chain(&error), 1);
    }
    // Before any thread starts.
    if let Err(error) = signals::block_harmless() {
        return fail(&format!("cannot block signals: {error}"), 1);
    }
    let Command::Serve(command) = &args.command;
    match serve::run(command, args.seccomp) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error_chain(&error), ServeError::status(&error)),
    }
}

fn fail(error: &str, status: u8) -> ExitCode {
    // If standard error cannot be written, there is no other place for the error.
    let _ = writeln!(io::stderr(), "gangplank-nfs: error: {error}");
    ExitCode::from(status)
}
