//! `gangplank-dvk`: parses the command line and runs the command.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use gangplank_dvk::args::{Args, Command};
use gangplank_dvk::rhostfs::service::ServeError;
use gangplank_dvk::rhostfs::{mount, service};
#[cfg(target_pointer_width = "64")]
use gangplank_dvk::tunnel;
use gangplank_dvk::{dump, forward, status, switch};
use gangplank_service::{error_chain, logging, signals};
use log::LevelFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = start_logging(&args) {
        return fail(&error_chain(&error), 1);
    }
    // Before any thread starts.
    if let Err(error) = signals::block_harmless() {
        return fail(&format!("cannot block signals: {error}"), 1);
    }
    let seccomp = args.seccomp;
    let mut status = 1;
    let done = match &args.command {
        Command::Mount(args) => mount::run(args, seccomp).map_err(|error| error_chain(&error)),
        Command::Serve(args) => {
            let served = service::run(args, seccomp);
            status = served.as_ref().map_or_else(ServeError::status, |()| 0);
            served.map_err(|error| error_chain(&error))
        }
        #[cfg(target_pointer_width = "64")]
        Command::Tunnel(args) => {
            tunnel::guest::run(args, seccomp).map_err(|error| error_chain(&error))
        }
        Command::Forward(args) => forward::run(args, seccomp).map_err(|error| error_chain(&error)),
        Command::Switch(args) => switch::run(args, seccomp).map_err(|error| error_chain(&error)),
        Command::Dump(args) => {
            dump::run(args, seccomp, &mut io::stdout().lock()).map_err(|error| error_chain(&error))
        }
        Command::Status(args) => status::run(args, seccomp, &mut io::stdout().lock())
            .map_err(|error| error_chain(&error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, status),
    }
}

fn fail(error: &str, status: u8) -> ExitCode {
    // If standard error cannot be written, there is no other place for the error.
    let _ = writeln!(io::stderr(), "gangplank-dvk: error: {error}");
    ExitCode::from(status)
}

/// Starts logging to standard error, as the arguments or `RUST_LOG` say.
fn start_logging(args: &Args) -> Result<(), logging::Error> {
    let filter = std::env::var("RUST_LOG").ok();
    let options = logging::Options::chosen("gangplank-dvk", args.log_level, filter);
    logging::start(&logging::Options {
        // fuser warns of each request that a file system does not implement, such as for extended
        // attributes. The warnings are of no use here.
        modules: vec![("fuser", options.level.min(LevelFilter::Error))],
        leaves_stderr: matches!(&args.command, Command::Mount(mount) if mount.tell),
        ..options
    })
}
