//! `gangplank-frontend`: parse and run.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use gangplank_frontend::args::{Args, Command};
use gangplank_frontend::fs;

fn main() -> ExitCode {
    let Command::Fs(args) = Args::parse().command;
    match fs::run(&args, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads has seen enough.
        Err(fs::Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // There is nowhere left to complain to if this fails.
            let _ = writeln!(
                io::stderr(),
                "gangplank-frontend: error: {}",
                in_full(&error)
            );
            ExitCode::from(error.status())
        }
    }
}

/// An error with all its causes.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
