//! `gangplankd status`, as typed.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};

use crate::status::options::MetricsAddress;

/// The theme of [`StatusOptions`] in `--help`.
pub(super) const HEADING: &str = "Looking inside";

/// Options of the daemon.
#[derive(Clone, Debug, Args)]
pub struct StatusOptions {
    /// Socket on which the daemon tells its status to its user: gangplankd status asks there
    #[arg(long, value_name = "PATH", help_heading = HEADING)]
    pub control: Option<PathBuf>,

    /// Tell OpenMetrics by HTTP, under /metrics: a path with a slash for a Unix socket, or an
    /// address and port of this host, such as 127.0.0.1:9100, which any local user may read
    #[arg(long, value_name = "ADDRESS", help_heading = HEADING)]
    pub metrics: Option<MetricsAddress>,

    /// Permit --metrics on an address that other hosts reach, without encryption or a password
    #[arg(long, help_heading = HEADING)]
    pub metrics_allow_remote: bool,
}

/// What to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show what a running daemon's guests do
    Status(StatusArgs),
}

/// How to show it.
#[derive(Clone, Debug, Args)]
#[command(long_about = super::status_manual().long_about(),
          after_long_help = super::status_manual().after_help())]
pub struct StatusArgs {
    /// The daemon's --control socket
    #[arg(long, value_name = "PATH", required_unless_present = "socket_path")]
    pub control: Option<PathBuf>,

    /// The daemon's --socket-path, if its --control is that with .control behind it
    #[arg(long, value_name = "PATH", conflicts_with = "control")]
    pub socket_path: Option<PathBuf>,

    /// Print all numbers as JSON
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,

    /// Show a screen that is renewed each second; q leaves it
    #[arg(long, action = ArgAction::SetTrue)]
    pub watch: bool,
}

impl StatusArgs {
    /// Where the daemon is asked.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        match (&self.control, &self.socket_path) {
            (Some(control), _) => control.clone(),
            (None, Some(socket)) => {
                let mut path = socket.clone().into_os_string();
                path.push(".control");
                path.into()
            }
            // The parser demands one of them.
            (None, None) => PathBuf::new(),
        }
    }
}
