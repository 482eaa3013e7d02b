//! The command line of `gangplank-dvk`.

use clap::{Parser, Subcommand};
use gangplank_sandbox::seccomp::Seccomp;
use log::LevelFilter;

use crate::dump::DumpArgs;
use crate::forward::ForwardArgs;
#[cfg(target_pointer_width = "64")]
use crate::manual::TUNNEL;
use crate::manual::{MOUNT, PROGRAM};
use crate::rhostfs::mount::MountArgs;
use crate::rhostfs::service::ServeArgs;
use crate::status::StatusArgs;
use crate::switch::SwitchArgs;
#[cfg(target_pointer_width = "64")]
use crate::tunnel::guest::TunnelArgs;

/// The command line.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplank-dvk",
    about = "DVK endpoints, and a shared directory as an rhostfs on them",
    long_about = PROGRAM.long_about(),
    after_long_help = PROGRAM.after_help(),
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Args {
    /// What to log: off, error, warn, info, debug or trace [default: as RUST_LOG says, or info]
    #[arg(long, value_name = "LEVEL", global = true)]
    pub log_level: Option<LevelFilter>,

    /// What happens when the program makes a system call that its command does not need: kill, log,
    /// trap or none
    #[arg(long, value_name = "ACTION", default_value = "kill", global = true)]
    pub seccomp: Seccomp,

    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Mount a remote rhostfs on a directory of this machine
    #[command(long_about = MOUNT.long_about())]
    Mount(MountArgs),
    /// Serve a share to DVS machines, as their rhostfs
    Serve(ServeArgs),
    /// Offer a guest a share that is elsewhere, as a virtio-fs device
    #[cfg(target_pointer_width = "64")]
    #[command(long_about = TUNNEL.long_about())]
    Tunnel(TunnelArgs),
    /// Let a server elsewhere serve the processes of this machine's DVK
    Forward(ForwardArgs),
    /// Connect programs of this host by endpoints
    Switch(SwitchArgs),
    /// Show the commands between nodes
    Dump(DumpArgs),
    /// Show the state of a running switch or server
    Status(StatusArgs),
}
