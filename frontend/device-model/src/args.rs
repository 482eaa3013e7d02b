//! The device model's command line, as typed.

use std::path::PathBuf;

use gangplank_sandbox::seccomp::Seccomp;
use log::LevelFilter;

/// The device model.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// The devices, in YAML
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Only check the configuration and show the plan; no device is touched
    #[arg(long, requires = "config")]
    pub check: bool,

    /// Write the plan of --check, and the status on --status-socket, as a JSON object
    #[arg(long, requires = "config")]
    pub json: bool,

    /// Listen here, and send the devices' status to every program that connects
    #[arg(long, value_name = "PATH", requires = "config")]
    pub status_socket: Option<PathBuf>,

    /// Name of the process that keeps the devices over a restart of this one [default: one for each
    /// device node and user]
    #[arg(long, value_name = "NAME", requires = "config")]
    pub holder: Option<String>,

    /// How many seconds a guest's requests wait for a daemon that is not there; then they fail, and
    /// the guest must mount anew
    #[arg(
        long,
        value_name = "SECONDS",
        requires = "config",
        default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..=86_400)
    )]
    pub daemon_wait: u32,

    /// What happens when a process makes a system call that it does not need: kill, log, trap or
    /// none
    #[arg(
        long,
        value_name = "ACTION",
        requires = "config",
        default_value = "kill"
    )]
    pub seccomp: Seccomp,

    /// What to log: off, error, warn, info, debug or trace [default: the configuration's, or info]
    #[arg(long, value_name = "LEVEL", requires = "config")]
    pub log_level: Option<LevelFilter>,
}
