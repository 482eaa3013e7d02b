//! `gangplank-dvk`: parse and run.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use gangplank_dvk::args::{Args, Command};
use gangplank_dvk::rhostfs::{mount, service};
use gangplank_dvk::{dump, forward, status, switch};
use gangplank_frontend::failure::in_full;
use log::LevelFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    start_logging(&args);
    let done = match &args.command {
        Command::Mount(args) => mount::run(args).map_err(|error| in_full(&error)),
        Command::Serve(args) => service::run(args).map_err(|error| in_full(&error)),
        Command::Forward(args) => forward::run(args).map_err(|error| in_full(&error)),
        Command::Switch(args) => switch::run(args).map_err(|error| in_full(&error)),
        Command::Dump(args) => {
            dump::run(args, &mut io::stdout().lock()).map_err(|error| in_full(&error))
        }
        Command::Status(args) => {
            status::run(args, &mut io::stdout().lock()).map_err(|error| in_full(&error))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nowhere left to complain to if this fails.
            let _ = writeln!(io::stderr(), "gangplank-dvk: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Standard error, as much of it as is asked for.
fn start_logging(args: &Args) {
    let mut builder = env_logger::Builder::new();
    match std::env::var("RUST_LOG") {
        Ok(filter) => builder.parse_filters(&filter),
        // fuser warns of each request that we have no answer to, such as for extended attributes: there is nothing to be done.
        Err(_) => builder
            .filter_level(args.log_level)
            .filter_module("fuser", args.log_level.min(LevelFilter::Error)),
    };
    builder.init();
}
