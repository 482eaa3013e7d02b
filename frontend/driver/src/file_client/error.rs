//! What can go wrong with a file of the share.

use std::io;
use std::path::PathBuf;

use crate as driver;

/// Results of the file client.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("no such file: {0}")]
    Missing(String),
    /// A path leads through something that is no directory.
    #[error("not a directory: {0}")]
    NotDirectory(String),
    /// A path leads through a symbolic link.
    #[error("{path} is a symbolic link to {target}: --follow follows it")]
    Link {
        /// The link.
        path: String,
        /// Where it leads.
        target: String,
    },
    /// Links lead round in a circle, or it looks like it.
    #[error("too many symbolic links: {0}")]
    Loop(String),
    /// A directory where a file is wanted.
    #[error("is a directory: {0}")]
    Directory(String),
    /// A path that cannot name what is asked for.
    #[error("{path}: {why}")]
    Path {
        /// The path.
        path: String,
        /// Why not.
        why: &'static str,
    },
    /// The daemon refused.
    #[error("cannot {what} {path}")]
    Refused {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: String,
        /// What the daemon said.
        #[source]
        source: driver::Error,
    },
    /// Data of a file did not pass.
    #[error("cannot {what} {path} at offset {offset}")]
    Transfer {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: String,
        /// Where in it.
        offset: u64,
        /// What the daemon said.
        #[source]
        source: driver::Error,
    },
    /// The daemon answered a write with success, and wrote nothing.
    #[error("cannot write {path} at offset {offset}: the daemon took none of {len} bytes")]
    Unwritten {
        /// Which file.
        path: String,
        /// Where in it.
        offset: u64,
        /// Bytes given.
        len: usize,
    },
    /// The share is another.
    #[error("the share's tag is {found:?}, not {wanted:?}")]
    Tag {
        /// The tag asked for.
        wanted: String,
        /// The tag found.
        found: String,
    },
    /// No daemon, or it has gone.
    #[error(transparent)]
    Daemon(driver::Error),
    /// A file of the host.
    #[error("cannot {what} {}", path.display())]
    Host {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Data of a file of the host did not pass.
    #[error("cannot {what} {} at offset {offset}", path.display())]
    HostTransfer {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Where in it; from where reading began, in standard input.
        offset: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Standard output.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

impl Error {
    /// The program's exit status: 3 where the daemon is to blame, 1 where a file is.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Daemon(_) => 3,
            Self::Refused { source, .. } | Self::Transfer { source, .. } if source.is_fatal() => 3,
            _ => 1,
        }
    }
}
