//! `gangplank-guest`: parses the command line and runs the command.
#![allow(clippy::print_stderr)] // how a command of a terminal complains

use std::process::ExitCode;

use clap::Parser;
use gangplank_guest::args::{Args, Command};
use gangplank_guest::watch;
use gangplank_service::error_chain;

fn main() -> ExitCode {
    let Command::Watch(args) = Args::parse().command;
    match watch::run(&args) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("gangplank-guest: {}", error_chain(&error));
            ExitCode::FAILURE
        }
    }
}
