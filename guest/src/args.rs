//! The command line of `gangplank-guest`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::manual::PROGRAM;

/// The command line.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplank-guest",
    about = "Watchers in a guest hear of the host's changes",
    long_about = PROGRAM.long_about(),
    after_long_help = PROGRAM.after_help(),
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Args {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Wake the watchers of files that the host or another guest changes, until it is ended
    Watch(WatchArgs),
}

/// The arguments of `watch`.
#[derive(Clone, Debug, clap::Args)]
pub struct WatchArgs {
    /// Where the share is mounted
    pub mountpoint: PathBuf,

    /// Print each change to standard error
    #[arg(short, long)]
    pub verbose: bool,
}
