//! `gangplank-frontend`: parses the command line and runs the command.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use gangplank_device_model::args::ModelArgs;
use gangplank_device_model::daemon::{self, Outcome};
use gangplank_device_model::fd_store;
use gangplank_driver::file_client as fs;
use gangplank_driver::file_client::args::FsArgs;
use gangplank_frontend::args::{Args, Command};
use gangplank_relay::{self as relay, RelayArgs};
use gangplank_service::output::Output;
use gangplank_service::{broken_pipe, error_chain, signals};
use gangplank_trace_viewer::{self as trace, TraceArgs};

fn main() -> ExitCode {
    let args = Args::parse();
    // Before any thread starts. File client and viewer are no daemons: they keep what signals
    // usually do.
    if !matches!(args.command, Some(Command::Fs(_) | Command::Trace(_)))
        && let Err(error) = signals::block_harmless()
    {
        return complain(&error, 1);
    }
    match args.command {
        Some(Command::Fs(args)) => run_fs(&args),
        Some(Command::Relay(args)) => run_relay(&args),
        Some(Command::Trace(args)) => run_trace(&args),
        Some(Command::Hold { seccomp, .. }) => match fd_store::run(seccomp) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error, 1),
        },
        None => run_model(&args.model),
    }
}

fn run_fs(args: &FsArgs) -> ExitCode {
    let ran = Output::standard()
        .map_err(fs::Error::Output)
        .and_then(|out| fs::run(args, out));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has closed the pipe. If it has failed, its own status says so.
        Err(fs::Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            broken_pipe::end()
        }
        Err(fs::Error::Several(failures)) => {
            for error in failures.first() {
                complain(error, error.status());
            }
            if failures.more() > 0 {
                let more = format!("{} more errors", failures.more());
                complain(&io::Error::other(more), 1);
            }
            ExitCode::from(fs::Error::Several(failures).status())
        }
        Err(error) => complain(&error, error.status()),
    }
}

fn run_relay(args: &RelayArgs) -> ExitCode {
    let filter = std::env::var("RUST_LOG").ok();
    let ran = Output::standard()
        .map_err(relay::Error::Output)
        .and_then(|out| relay::run(args, filter.as_deref(), out));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(relay::Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            broken_pipe::end()
        }
        Err(error) => complain(&error, 1),
    }
}

fn run_trace(args: &TraceArgs) -> ExitCode {
    let ran = Output::standard()
        .map_err(trace::Error::Output)
        .and_then(|out| trace::run(args, out));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(trace::Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            broken_pipe::end()
        }
        Err(error) => complain(&error, 1),
    }
}

fn run_model(args: &ModelArgs) -> ExitCode {
    let Some(config) = &args.config else {
        // Options of the device model without `--config`. Without any option, clap has shown the
        // help.
        let missing = clap::error::ErrorKind::MissingRequiredArgument;
        Args::command().error(missing, "--config is missing").exit()
    };
    let filter = std::env::var("RUST_LOG").ok();
    let ran = Output::standard()
        .map_err(daemon::Error::Output)
        .and_then(|out| daemon::run(config, args, filter.as_deref(), out));
    match ran {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Err(daemon::Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            broken_pipe::end()
        }
        Err(error) => complain(&error, error.status()),
    }
}

fn complain(error: &dyn Error, status: u8) -> ExitCode {
    // Without a standard error the message cannot be shown anywhere.
    let _ = writeln!(
        io::stderr(),
        "gangplank-frontend: error: {}",
        error_chain(error)
    );
    ExitCode::from(status)
}
