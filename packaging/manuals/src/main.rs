//! `gangplank-manuals`: writes manual pages, shell completions and the reference.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use gangplank_manuals::{completions, page, reference};

/// Writes manual pages, shell completions and the reference of gangplank's programs
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Args {
    /// Write man/ and completions/ into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Write the reference of the documentation into this directory
    #[arg(long, value_name = "DIR")]
    reference: Option<PathBuf>,

    /// The date in the footer of manual pages, such as 2026-01-31
    #[arg(long, default_value = "", hide_default_value = true)]
    date: String,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gangplank-manuals: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(directory) = &args.out {
        page::write_all(&directory.join("man"), &args.date)?;
        completions::write_all(&directory.join("completions"))?;
    }
    if let Some(directory) = &args.reference {
        reference::write_all(directory)?;
    }
    Ok(())
}
