//! `gangplankd status`, as typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser};

use super::EarlyExit;
use crate::manual::STATUS;
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

/// `gangplankd status`: shows what a running daemon's guests do.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplankd status",
    about = "Shows what a running daemon's guests do",
    long_about = STATUS.long_about(),
    after_long_help = STATUS.after_help(),
    version,
    arg_required_else_help = true
)]
pub struct StatusArgs {
    /// The daemon's --control socket
    #[arg(long, value_name = "PATH", required_unless_present = "socket_path")]
    pub control: Option<PathBuf>,

    /// The daemon's --socket-path, if its --control is that with .control behind it
    #[arg(long, value_name = "PATH", conflicts_with = "control")]
    pub socket_path: Option<PathBuf>,

    /// The tag of one share of several
    #[arg(long, value_name = "TAG")]
    pub share: Option<String>,

    /// Print all numbers as JSON
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,

    /// Show a screen that is renewed each second; q leaves it
    #[arg(long)]
    pub watch: bool,
}

impl StatusArgs {
    /// Parses a command line, which begins with the program's name, if its first argument is the
    /// command. `None` if it is not: then everything is virtiofsd's.
    ///
    /// # Errors
    /// [`EarlyExit`] for `--help`, `--version` and errors in the command line.
    pub fn from_command_line<I>(arguments: I) -> Result<Option<Self>, EarlyExit>
    where
        I: IntoIterator<Item = OsString>,
    {
        let mut arguments = arguments.into_iter().skip(1);
        if arguments.next().is_none_or(|first| first != "status") {
            return Ok(None);
        }
        let arguments = ["gangplankd status".into()].into_iter().chain(arguments);
        Self::try_parse_from(arguments).map(Some).map_err(EarlyExit)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<StatusArgs>, EarlyExit> {
        StatusArgs::from_command_line(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_first_argument_alone_is_a_command() {
        assert!(parse("gangplankd --tag status").unwrap().is_none());
        assert!(parse("gangplankd").unwrap().is_none());
        let control = |line| parse(line).unwrap().unwrap().control();
        assert_eq!(control("gangplankd status --control c"), PathBuf::from("c"));
        let derived = control("gangplankd status --socket-path=/run/fs.sock");
        assert_eq!(derived, PathBuf::from("/run/fs.sock.control"));
        for line in [
            "gangplankd status",
            "gangplankd status --json",
            "gangplankd status --control c --json --watch",
            "gangplankd status --control c --socket-path s",
            "gangplankd status --control c --tag x",
        ] {
            assert_eq!(parse(line).unwrap_err().status(), 2, "{line}");
        }
    }
}
