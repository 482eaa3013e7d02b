//! `gangplank-guest`: parses the command line and runs the command.
#![allow(clippy::print_stderr)] // how a command of a terminal complains

use std::process::ExitCode;

use clap::Parser;
use gangplank_guest::args::{Args, Command};
use gangplank_guest::watch;
use gangplank_service::{error_chain, signals};

fn main() -> ExitCode {
    let Command::Watch(args) = Args::parse().command;
    // Before any thread starts.
    if let Err(error) = signals::block_harmless() {
        return fail(&format!("cannot block signals: {error}"));
    }
    match watch::run(&args) {
        Ok(never) => match never {},
        Err(error) => fail(&error_chain(&error)),
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("gangplank-guest: {error}");
    ExitCode::FAILURE
}
