//! The command line of `gangplank-nfs`.

use clap::{Parser, Subcommand};
use gangplank_sandbox::seccomp::Seccomp;
use log::LevelFilter;

use crate::manual::PROGRAM;
use crate::serve::ServeArgs;

/// The command line.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplank-nfs",
    about = "A shared directory by NFSv3",
    long_about = PROGRAM.long_about(),
    after_long_help = PROGRAM.after_help(),
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Args {
    /// What to log: off, error, warn, info, debug or trace; without it, RUST_LOG selects by module
    /// [default: info]
    #[arg(long, value_name = "LEVEL", global = true)]
    pub log_level: Option<LevelFilter>,

    /// What happens when the program makes a system call that it does not need: kill, log, trap or
    /// none
    #[arg(long, value_name = "ACTION", default_value = "kill", global = true)]
    pub seccomp: Seccomp,

    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve a share to NFS clients
    Serve(Box<ServeArgs>),
}
