//! The file client's command line, as typed.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::actions::FsAction;

/// Heading of the options that choose the daemon.
const DAEMON: &str = "Daemon";
/// Heading of the options about paths and files.
const FILES: &str = "Files";

/// `fs`: a file client.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Paths are below the share's root. Symbolic links are shown and not followed, \
                  unless --follow is given. In names of the share, *, ?, [a-z] and {a,b} match, \
                  unless a file has the very name.\n\
                  Exit status: 0 done, 1 a command on a file failed, 2 wrong command line, \
                  3 the daemon cannot be reached or has gone."
)]
pub struct FsArgs {
    /// The daemon's socket
    #[arg(long, short, value_name = "PATH", help_heading = DAEMON)]
    pub socket: PathBuf,

    /// Refuse a share with another tag
    #[arg(long, value_name = "TAG", help_heading = DAEMON)]
    pub tag: Option<String>,

    /// How long the daemon may take for a request, in seconds with fractions
    #[arg(
        long,
        value_name = "SECS",
        default_value = "30",
        value_parser = parse_seconds,
        help_heading = DAEMON
    )]
    pub limit: Duration,

    /// User and group on whose behalf files are made [default: the caller's own ids]
    #[arg(long = "as", value_name = "UID:GID", help_heading = FILES)]
    pub owner: Option<Owner>,

    /// Follow symbolic links, within the share
    #[arg(long, short = 'L', help_heading = FILES)]
    pub follow: bool,

    /// Take *, ?, [ and { in names as they are
    #[arg(long, help_heading = FILES)]
    pub no_glob: bool,

    /// What to do with the share.
    #[command(subcommand)]
    pub action: FsAction,
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

/// A user, a group or both, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// User.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

impl FromStr for Owners {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RIGHT: &str = "owners are numbers: 1000, 1000:1000 or :1000";
        let (uid, gid) = text.split_once(':').unwrap_or((text, ""));
        let number = |text: &str| match text {
            "" => Ok(None),
            // The system calls take it for "as it is".
            _ => match text.parse() {
                Ok(u32::MAX) | Err(_) => Err(RIGHT),
                Ok(number) => Ok(Some(number)),
            },
        };
        match (number(uid)?, number(gid)?) {
            (None, None) => Err(RIGHT),
            (uid, gid) => Ok(Self { uid, gid }),
        }
    }
}

fn parse_seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().map_err(|_| "not a number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() => Ok(limit),
        _ => Err("seconds are more than zero"),
    }
}
