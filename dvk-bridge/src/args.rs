//! The command line as typed.

use clap::{Parser, Subcommand};
use log::LevelFilter;

use crate::dump::DumpArgs;
use crate::forward::ForwardArgs;
use crate::rhostfs::mount::MountArgs;
use crate::rhostfs::service::ServeArgs;
use crate::status::StatusArgs;
use crate::switch::SwitchArgs;

/// Everything typed.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplank-dvk",
    about = "DVK endpoints, and a shared directory as an rhostfs on them",
    version,
    arg_required_else_help = true
)]
pub struct Args {
    /// What to log: off, error, warn, info, debug or trace; RUST_LOG says it more finely
    #[arg(long, value_name = "LEVEL", default_value = "info", global = true)]
    pub log_level: LevelFilter,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Mount a far rhostfs on a directory of this machine
    Mount(MountArgs),
    /// Serve a share to DVS machines, as their rhostfs
    Serve(ServeArgs),
    /// Let a server elsewhere serve the processes of this machine's DVK
    Forward(ForwardArgs),
    /// Let programs of this host bind endpoints and reach each other's
    Switch(SwitchArgs),
    /// Show what nodes say to each other
    Dump(DumpArgs),
    /// Show the state of a running switch or server
    Status(StatusArgs),
}
