//! The command line of `relay`, as the user types it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Subcommand};
use gangplank_sandbox::seccomp::Seccomp;

/// `relay`: serves guests by a daemon that may come late, be replaced or die.
#[derive(Clone, Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = "A guest keeps its device while the daemon behind it is absent, is replaced or \
                  dies.\n\
                  Exit status: 0 done, 1 it failed, 2 wrong command line."
)]
pub struct RelayArgs {
    /// Send a command to a running relay
    #[command(subcommand)]
    pub action: Option<RelayAction>,

    /// The socket where guests connect; the relay creates it [default: the one of a socket unit of
    /// systemd]
    #[arg(long, value_name = "PATH")]
    pub listen: Option<PathBuf>,

    /// Group that may connect to that socket, beside its owner [default: whoever the umask permits]
    #[arg(
        long,
        value_name = "GROUP",
        requires = "listen",
        overrides_with = "socket_group"
    )]
    pub socket_group: Option<String>,

    /// The daemon's socket; it need not exist yet
    #[arg(long, value_name = "PATH", required = true)]
    pub backend: Option<PathBuf>,

    /// The socket where this relay takes commands; the relay creates it, for its owner alone
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// The socket where daemons (gangplankd --holder) have descriptors held, so that guests outlive
    /// the end of all processes of a daemon; the relay creates it, for its owner alone
    #[arg(long, value_name = "PATH")]
    pub holder: Option<PathBuf>,

    /// Descriptors that are held at most
    #[arg(long, value_name = "N", default_value_t = 8192, requires = "holder")]
    pub holder_limit: usize,

    /// Time that guests wait for the next daemon, in seconds; then what was held for them is
    /// closed, and their requests fail
    #[arg(long, value_name = "SECS", default_value = "300", value_parser = parse_seconds,
          requires = "holder")]
    pub holder_time: Duration,

    /// The share's tag for guests that ask for it [default: the daemon's]
    #[arg(long, value_name = "TAG", value_parser = parse_tag)]
    pub tag: Option<String>,

    /// Request queues of each device [default: the daemon's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub num_request_queues: Option<u16>,

    /// Time that a daemon has to answer, in seconds; to stop a ring it may take longer, until the
    /// requests in it are complete
    #[arg(long, value_name = "SECS", default_value = "10", value_parser = parse_seconds)]
    pub limit: Duration,

    /// Time that a daemon has to save or load what it knows of a guest's files, in seconds
    #[arg(long, value_name = "SECS", default_value = "60", value_parser = parse_seconds)]
    pub state_limit: Duration,

    /// Time that a guest's requests wait for the successor of a daemon that has ended, in seconds
    /// [default: the requests fail at once]
    ///
    /// It counts all together until a successor finishes a request or serves for 5 seconds. Use it
    /// with gangplank-dvk tunnel, whose next process keeps the guest's files open. A guest with a
    /// ring larger than its first one does not wait.
    #[arg(long, value_name = "SECS", value_parser = parse_seconds)]
    pub return_time: Option<Duration>,

    /// What happens when the relay makes a system call that it does not need: kill, log, trap or
    /// none
    #[arg(long, value_name = "ACTION", default_value = "kill")]
    pub seccomp: Seccomp,

    /// Log less (error, warn) or more (debug) [default: as RUST_LOG says, or info]
    #[arg(long, value_name = "LEVEL", action = ArgAction::Set)]
    pub log_level: Option<log::LevelFilter>,
}

/// A command to a running relay.
#[derive(Clone, Debug, Subcommand)]
pub enum RelayAction {
    /// Show each guest, and the daemon that serves it
    Status {
        /// Write a JSON object
        #[arg(long)]
        json: bool,
        /// The relay's control socket
        #[arg(long, value_name = "PATH")]
        control: PathBuf,
    },
    /// Stop all requests, and have the daemons save their state
    Pause {
        /// The relay's control socket
        #[arg(long, value_name = "PATH")]
        control: PathBuf,
    },
    /// Go on, with the same daemon or with one that has been started in its place
    Resume {
        /// The relay's control socket
        #[arg(long, value_name = "PATH")]
        control: PathBuf,
    },
    /// Replace the daemon by another
    Switch {
        /// The relay's control socket
        #[arg(long, value_name = "PATH")]
        control: PathBuf,
        /// Do not keep open files: guests have to mount anew
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
    let seconds = text
        .parse()
        .map_err(|_| "the time is a number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() && limit <= Duration::from_secs(86_400) => Ok(limit),
        _ => Err("the time is more than 0 seconds, and at most a day (86400)"),
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
    fn relay_needs_a_daemon_and_orders_need_its_control() {
        assert!(parse("--listen a --backend b").unwrap().action.is_none());
        // The socket may be that of a unit.
        assert!(parse("--backend b").unwrap().listen.is_none());
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
            "status",
            "switch --control c",
            "--listen a --backend b --tag= ",
            "--listen a --backend b --limit 0",
            "--listen a --backend b --num-request-queues 256",
            "--listen a --backend b status --control c",
            "--listen a --backend b --holder-limit 9",
            "--backend b --socket-group kvm",
            "--listen a --backend b --holder h --holder-time 0",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
