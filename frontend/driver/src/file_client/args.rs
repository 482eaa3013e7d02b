//! The file client's command line, as typed.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Subcommand;

/// Heading of the options that choose the daemon.
const DAEMON: &str = "Daemon";
/// Heading of the options about paths and files.
const FILES: &str = "Files";

/// `fs`: a file client.
#[derive(Clone, Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Paths are below the share's root. Symbolic links are shown and not followed, \
                  unless --follow is given.\n\
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
    /// Copy a file; a path in the share begins with a colon: cp :in/share here
    Cp {
        /// What to copy
        #[arg(value_name = "FROM")]
        from: String,
        /// Where to; into it, if it is a directory
        #[arg(value_name = "TO")]
        to: String,
    },
    /// Show everything that is known of files
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
        /// Append to the file instead of replacing its contents
        #[arg(long, short)]
        append: bool,
        /// Which
        #[arg(value_name = "PATH")]
        path: String,
    },
    /// Make directories
    Mkdir {
        /// Make missing parents too; a directory that exists is no error
        #[arg(long, short)]
        parents: bool,
        /// Which
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
    },
    /// Remove files
    Rm {
        /// Remove directories too, with everything below them
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
        /// A symbolic link, whose target need not exist
        #[arg(long, short)]
        symbolic: bool,
        /// The target of the link
        #[arg(value_name = "TARGET")]
        target: String,
        /// The link
        #[arg(value_name = "PATH")]
        path: String,
    },
    /// Show the free space of the share
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
