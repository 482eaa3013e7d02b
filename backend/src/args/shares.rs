//! Several shares, and `gangplankd share`, as typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::EarlyExit;
use crate::manual::SHARE;

/// The theme of [`SharesOptions`] in `--help`.
pub(super) const HEADING: &str = "Several shares";

/// Options of a daemon that serves several shares.
#[derive(Clone, Debug, Default, Args)]
pub struct SharesOptions {
    /// One share of several, with options of its own behind commas, such as
    /// home=/srv/home,readonly,socket=/run/home.sock; two commas stand for one in a value;
    /// repeatable
    #[arg(long, value_name = "TAG=DIR[,OPTION...]", help_heading = HEADING)]
    pub share: Vec<String>,

    /// Directory with a file TAG.toml for each share of several
    #[arg(long, value_name = "DIR", help_heading = HEADING)]
    pub shares_dir: Option<PathBuf>,

    /// Directory for the sockets of shares that name none; they are called TAG.sock
    #[arg(long, value_name = "DIR", help_heading = HEADING)]
    pub socket_dir: Option<PathBuf>,
}

impl SharesOptions {
    /// Whether the daemon serves shares of these options instead of `--shared-dir`.
    #[must_use]
    pub fn are_given(&self) -> bool {
        !self.share.is_empty() || self.shares_dir.is_some() || self.socket_dir.is_some()
    }
}

/// `gangplankd share`: changes what a running daemon shares.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplankd share",
    about = "Adds, removes and lists shares of a running daemon",
    propagate_version = true,
    long_about = SHARE.long_about(),
    after_long_help = SHARE.after_help(),
    version,
    arg_required_else_help = true
)]
pub struct ShareArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ShareCommand,
}

/// What `gangplankd share` does.
#[derive(Clone, Debug, Subcommand)]
pub enum ShareCommand {
    /// Serve another share, and return when guests can connect
    Add {
        /// The daemon's --control socket
        #[arg(long, value_name = "PATH")]
        control: PathBuf,

        /// The share, as in the daemon's --share
        #[arg(value_name = "TAG=DIR[,OPTION...]", required_unless_present = "file")]
        share: Option<String>,

        /// A file of the share, as in the daemon's --shares-dir
        #[arg(long, value_name = "PATH", conflicts_with = "share")]
        file: Option<PathBuf>,
    },
    /// Stop serving a share, and return when its processes have ended
    Remove {
        /// The daemon's --control socket
        #[arg(long, value_name = "PATH")]
        control: PathBuf,

        /// The share's tag
        tag: String,

        /// Also if guests use it: their requests in flight are finished, and their connections end
        #[arg(long)]
        force: bool,
    },
    /// Show all shares
    List {
        /// The daemon's --control socket
        #[arg(long, value_name = "PATH")]
        control: PathBuf,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl ShareArgs {
    /// Parses a command line, which begins with the program's name, if its first argument is the
    /// command. `None` if it is not.
    ///
    /// # Errors
    /// [`EarlyExit`] for `--help`, `--version` and errors in the command line.
    pub fn from_command_line<I>(arguments: I) -> Result<Option<Self>, EarlyExit>
    where
        I: IntoIterator<Item = OsString>,
    {
        let mut arguments = arguments.into_iter().skip(1);
        if arguments.next().is_none_or(|first| first != "share") {
            return Ok(None);
        }
        let arguments = ["gangplankd share".into()].into_iter().chain(arguments);
        Self::try_parse_from(arguments).map(Some).map_err(EarlyExit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_need_a_control_socket_and_a_share() {
        let parse =
            |line: &str| ShareArgs::from_command_line(line.split_whitespace().map(OsString::from));
        assert!(parse("gangplankd --share home=/srv").unwrap().is_none());
        for line in [
            "gangplankd share list --control c --json",
            "gangplankd share add home=/srv,readonly --control=c",
            "gangplankd share add --file=home.toml --control=c",
            "gangplankd share remove home --force --control=c",
        ] {
            assert!(parse(line).unwrap().is_some(), "{line}");
        }
        for line in [
            "gangplankd share",
            "gangplankd share list",
            "gangplankd share add --control c",
            "gangplankd share add home=/srv --file=f --control c",
            "gangplankd share remove --control c",
            "gangplankd share rename --control c",
        ] {
            assert_eq!(parse(line).unwrap_err().status(), 2, "{line}");
        }
    }
}
