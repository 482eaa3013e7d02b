//! The command line of `relay`, as typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Subcommand};

/// `relay`: a place between a guest and a daemon.
#[derive(Clone, Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = "A guest keeps its device while the daemon behind it is absent, is replaced or dies. See README.md, \"The relay\".\n\
                  Exit status: 0 done, 1 it failed, 2 wrong command line."
)]
pub struct RelayArgs {
    /// Tell a relay that runs what to do
    #[command(subcommand)]
    pub action: Option<RelayAction>,

    /// The socket where guests connect; it is made
    #[arg(long, value_name = "PATH", required = true)]
    pub listen: Option<PathBuf>,

    /// The daemon's socket; it need not be there yet
    #[arg(long, value_name = "PATH", required = true)]
    pub backend: Option<PathBuf>,

    /// The socket where this relay is told what to do; it is made, for its owner alone
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// The share's name for guests that ask for it [default: the daemon's]
    #[arg(long, value_name = "TAG", value_parser = parse_tag)]
    pub tag: Option<String>,

    /// Request queues of each device [default: the daemon's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub num_request_queues: Option<u16>,

    /// How long a daemon may take to answer, in seconds; it may take longer to stop a ring, until the requests in it are done
    #[arg(long, value_name = "SECS", default_value = "10", value_parser = parse_seconds)]
    pub limit: Duration,

    /// How long a daemon may take to save what it knows of a guest's files, or to load it, in seconds
    #[arg(long, value_name = "SECS", default_value = "60", value_parser = parse_seconds)]
    pub state_limit: Duration,

    /// Say less (error, warn) or more (debug)
    #[arg(long, value_name = "LEVEL", default_value = "info", action = ArgAction::Set)]
    pub log_level: log::LevelFilter,
}

/// What a relay that runs can be told.
#[derive(Clone, Debug, Subcommand)]
pub enum RelayAction {
    /// Show each guest, and who serves it
    Status {
        /// Where the relay is told
        #[arg(long, value_name = "PATH")]
        control: PathBuf,
    },
    /// Stop all requests, and have the daemons save what they know
    Pause {
        /// Where the relay is told
        #[arg(long, value_name = "PATH")]
        control: PathBuf,
    },
    /// Go on, with the same daemon or with one that was started in its place
    Resume {
        /// Where the relay is told
        #[arg(long, value_name = "PATH")]
        control: PathBuf,
    },
    /// Leave the daemon for another
    Switch {
        /// Where the relay is told
        #[arg(long, value_name = "PATH")]
        control: PathBuf,
        /// Also where open files cannot be kept: guests have to mount anew
        #[arg(long)]
        without_state: bool,
        /// The other daemon's socket
        #[arg(value_name = "SOCKET")]
        socket: PathBuf,
    },
}

/// virtio 1.2, 5.11.4: the tag's field has 36 bytes.
fn parse_tag(text: &str) -> Result<String, &'static str> {
    match text.len() {
        1..=36 => Ok(text.to_owned()),
        _ => Err("a tag has 1 to 36 bytes"),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().map_err(|_| "not a number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() && limit <= Duration::from_secs(86_400) => Ok(limit),
        _ => Err("seconds are more than zero, and no more than a day"),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        relay: RelayArgs,
    }

    fn parse(line: &str) -> Result<RelayArgs, clap::Error> {
        let words = ["relay"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.relay)
    }

    #[test]
    fn command_definition_is_consistent() {
        Line::command().debug_assert();
    }

    #[test]
    fn relay_needs_both_its_ends_and_orders_need_its_control() {
        assert!(parse("--listen a --backend b").unwrap().action.is_none());
        let order = parse("switch --control c /new").unwrap();
        assert!(matches!(
            order.action,
            Some(RelayAction::Switch {
                without_state: false,
                ..
            })
        ));
        for wrong in [
            "--listen a",
            "--backend b",
            "status",
            "switch --control c",
            "--listen a --backend b --tag= ",
            "--listen a --backend b --limit 0",
            "--listen a --backend b --num-request-queues 256",
            "--listen a --backend b status --control c",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
