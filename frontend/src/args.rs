//! The command line as typed.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand};
use log::LevelFilter;

/// Heading of the options that say which daemon and how.
const DAEMON: &str = "Daemon";
/// Heading of the options that say how paths and files are treated.
const FILES: &str = "Files";

/// Everything typed.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gangplank-frontend",
    about = "The driver's side of virtio-fs over vhost-user: a device model for hypervisors that have none, and a file client.\n\n\
             With --config, serves the devices of a configuration to their guests.",
    version,
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    after_help = "Exit status: 0 done, or told to end by SIGTERM, SIGINT or SIGHUP; 1 a device could not be served, or not to the end; \
                  2 wrong command line or configuration. SIGUSR1 has the status written to the log."
)]
pub struct Args {
    /// What to do instead of serving devices.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Which devices to serve.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// The device model.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArgs {
    /// The devices, in YAML
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Only check the configuration and show what it comes to; no device is touched
    #[arg(long, requires = "config")]
    pub check: bool,

    /// Where to listen for everybody who wants to know how the devices stand
    #[arg(long, value_name = "PATH", requires = "config")]
    pub status_socket: Option<PathBuf>,

    /// Name of the process that keeps the devices over a restart of this one [default: one for each driver's node and user]
    #[arg(long, value_name = "NAME", requires = "config")]
    pub holder: Option<String>,

    /// What to log: off, error, warn, info, debug or trace [default: the configuration's, or info]
    #[arg(long, value_name = "LEVEL", requires = "config")]
    pub log_level: Option<LevelFilter>,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Look at a daemon's share, and change it, without a guest
    Fs(FsArgs),
    /// Stand between a guest and a daemon that may come late, be replaced, or go
    Relay(crate::relay::RelayArgs),
    /// Keep devices over a restart of the device model, which starts this by itself
    #[command(hide = true)]
    Hold {
        /// Tells it from others in a list of processes
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// `fs`: a file client.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Paths are below the share's root. Symbolic links are shown and not followed, unless --follow is given.\n\
                  Exit status: 0 done, 1 a file could not be dealt with, 2 wrong command line, 3 no daemon, or it has gone."
)]
pub struct FsArgs {
    /// The daemon's socket
    #[arg(long, short, value_name = "PATH", help_heading = DAEMON)]
    pub socket: PathBuf,

    /// Refuse a share of another name
    #[arg(long, value_name = "TAG", help_heading = DAEMON)]
    pub tag: Option<String>,

    /// How long the daemon may take for a request, in seconds with fractions
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = parse_seconds, help_heading = DAEMON)]
    pub limit: Duration,

    /// On whose behalf files are made [default: the caller's own ids]
    #[arg(long = "as", value_name = "UID:GID", help_heading = FILES)]
    pub owner: Option<Owner>,

    /// Follow symbolic links, within the share
    #[arg(long, short = 'L', help_heading = FILES)]
    pub follow: bool,

    /// What to do with the share.
    #[command(subcommand)]
    pub action: FsAction,
}

/// What `fs` can do.
#[derive(Clone, Debug, Subcommand)]
pub enum FsAction {
    /// List directories and files, as `ls -l` does
    Ls {
        /// Also names that begin with a dot
        #[arg(long, short)]
        all: bool,
        /// What to list
        #[arg(value_name = "PATH", default_value = "/")]
        paths: Vec<String>,
    },
    /// Write files to standard output
    Cat {
        /// What to write
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// Copy a file; a path in the share is marked by a colon: cp :in/share here
    Cp {
        /// What to copy
        #[arg(value_name = "FROM")]
        from: String,
        /// Where to; into it, if it is a directory
        #[arg(value_name = "TO")]
        to: String,
    },
    /// Show all that is known of files
    Stat {
        /// Which
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// Show a directory and all below it
    Tree {
        /// Where to begin
        #[arg(value_name = "PATH", default_value = "/")]
        path: String,
    },
    /// Write standard input to a file
    Write {
        /// Behind what is in it
        #[arg(long, short)]
        append: bool,
        /// Which
        #[arg(value_name = "PATH")]
        path: String,
    },
    /// Make directories
    Mkdir {
        /// Also those that lead there; one that exists is no error
        #[arg(long, short)]
        parents: bool,
        /// Which
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// Remove files
    Rm {
        /// Directories too, with all below them
        #[arg(long, short)]
        recursive: bool,
        /// Which
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// Rename a file or directory
    Mv {
        /// What to rename
        #[arg(value_name = "FROM")]
        from: String,
        /// Where to; into it, if it is a directory
        #[arg(value_name = "TO")]
        to: String,
    },
    /// Make a link
    Ln {
        /// A symbolic one, whose target need not exist
        #[arg(long, short)]
        symbolic: bool,
        /// What it leads to
        #[arg(value_name = "TARGET")]
        target: String,
        /// The link
        #[arg(value_name = "PATH")]
        path: String,
    },
    /// Show how much space there is
    Df,
}

/// A user and a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl FromStr for Owner {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RIGHT: &str = "user and group are numbers, such as 1000:1000";
        let (uid, gid) = text.split_once(':').ok_or(RIGHT)?;
        Ok(Self {
            uid: uid.parse().map_err(|_| RIGHT)?,
            gid: gid.parse().map_err(|_| RIGHT)?,
        })
    }
}

fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().map_err(|_| "not a number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() => Ok(limit),
        _ => Err("seconds are more than zero"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let words = line.split_whitespace();
        Args::try_parse_from(["gangplank-frontend"].into_iter().chain(words))
    }

    #[test]
    fn command_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn wrong_values_say_what_would_be_right() {
        for (line, right) in [
            ("fs -s s --as root ls", "such as 1000:1000"),
            ("fs -s s --as 1:x ls", "such as 1000:1000"),
            ("fs -s s --limit 0 ls", "more than zero"),
            ("fs -s s --limit soon ls", "not a number"),
        ] {
            let text = parse(line).unwrap_err().to_string();
            assert!(text.contains(right), "{line}: {text}");
        }
        assert_eq!(parse("fs ls").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_root_is_listed_by_default() {
        let parsed = parse("fs --socket s --as 1:2 ls").unwrap();
        let Some(Command::Fs(args)) = parsed.command else {
            panic!("another command: {parsed:?}");
        };
        assert_eq!(args.owner, Some(Owner { uid: 1, gid: 2 }));
        assert!(matches!(args.action, FsAction::Ls { paths, .. } if paths == ["/"]));
    }

    #[test]
    fn device_model_takes_its_configuration_and_no_subcommand() {
        let parsed = parse("--config c.yaml --check --log-level debug").unwrap();
        assert_eq!(parsed.model.config, Some("c.yaml".into()));
        assert_eq!(parsed.model.log_level, Some(LevelFilter::Debug));
        assert!(parsed.model.check && parsed.command.is_none());
        for line in [
            "--check",
            "--status-socket s",
            "--config c.yaml --log-level loud",
            "--config c.yaml fs -s s ls",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
