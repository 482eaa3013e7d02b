//! Errors of the file client.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate as driver;

/// Results of the file client.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("no such file: {0}")]
    Missing(String),
    /// A path leads through something that is not a directory.
    #[error("not a directory: {0}")]
    NotDirectory(String),
    /// A path leads through a symbolic link.
    #[error("{path} is a symbolic link to {target}: --follow follows it")]
    Link {
        /// The link.
        path: String,
        /// Its target.
        target: String,
    },
    /// A path has too many links: probably they form a circle.
    #[error("too many symbolic links: {0}")]
    Loop(String),
    /// A directory where a file is wanted.
    #[error("is a directory: {0}")]
    Directory(String),
    /// A path that is not valid for the command.
    #[error("{path}: {why}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The daemon refused.
    #[error("cannot {what} {path}")]
    Refused {
        /// The verb.
        what: &'static str,
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: driver::Error,
    },
    /// File data could not be read or written.
    #[error("cannot {what} {path} at offset {offset}")]
    Transfer {
        /// The verb.
        what: &'static str,
        /// The file.
        path: String,
        /// Offset in it, in bytes.
        offset: u64,
        /// The cause.
        #[source]
        source: driver::Error,
    },
    /// The daemon reported success for a write of no bytes.
    #[error("cannot write {path} at offset {offset}: the daemon took none of {len} bytes")]
    Unwritten {
        /// The file.
        path: String,
        /// Offset in it, in bytes.
        offset: u64,
        /// Bytes sent.
        len: usize,
    },
    /// The share has another tag.
    #[error("the share's tag is {found:?}, not {wanted:?}")]
    Tag {
        /// The tag wanted.
        wanted: String,
        /// The tag found.
        found: String,
    },
    /// The daemon does not answer, or has gone.
    #[error(transparent)]
    Daemon(driver::Error),
    /// A file of the host could not be opened or closed.
    #[error("cannot {what} {}", path.display())]
    Host {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Data of a file of the host could not be read or written.
    #[error("cannot {what} {} at offset {offset}", path.display())]
    HostTransfer {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Offset in it, in bytes; in standard input, from where reading began.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A pattern that cannot be used.
    #[error("{pattern}: {why}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// A word of the command line that cannot be used.
    #[error("{word}: {why}")]
    Word {
        /// The word.
        word: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A line of a shell that is no command, as the command line's parser says it.
    #[error("{0}")]
    Line(String),
    /// Commands of a script failed, each with its own message.
    #[error("{failed} commands failed")]
    Script {
        /// How many.
        failed: u64,
    },
    /// Standard output could not be written.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
    /// Several files failed, and the command went on with the others.
    #[error("{} files failed", .0.count())]
    Several(Failures),
}

/// What failed while a command went on.
#[derive(Debug, Default)]
pub struct Failures {
    first: Vec<Error>,
    more: usize,
}

/// Errors that are kept to be shown. The others are counted: a directory may have millions of files
/// that cannot be removed.
const MAX_SHOWN: usize = 20;

impl Failures {
    /// The first errors, in their order.
    #[must_use]
    pub fn first(&self) -> &[Error] {
        &self.first
    }

    /// Errors after the first ones.
    #[must_use]
    pub const fn more(&self) -> usize {
        self.more
    }

    /// All errors.
    #[must_use]
    pub fn count(&self) -> usize {
        self.first.len() + self.more
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Keeps the error of one file. An error after which no other file can succeed is returned,
    /// with those before it.
    pub(super) fn note(&mut self, done: Result<()>) -> Result<()> {
        let Err(error) = done else {
            return Ok(());
        };
        let ends = error.ends_the_command();
        match error {
            Error::Several(others) => {
                self.more += others.more;
                others.first.into_iter().for_each(|error| self.push(error));
            }
            error => self.push(error),
        }
        match ends {
            true => std::mem::take(self).into_result(),
            false => Ok(()),
        }
    }

    fn push(&mut self, error: Error) {
        // The last error is shown if it ended the command.
        if self.first.len() < MAX_SHOWN || error.ends_the_command() {
            self.first.push(error);
        } else {
            self.more += 1;
        }
    }

    /// Success if nothing failed; a single error as it is.
    pub(super) fn into_result(mut self) -> Result<()> {
        match self.first.pop() {
            None => Ok(()),
            Some(error) if self.first.is_empty() && self.more == 0 => Err(error),
            Some(error) => {
                self.first.push(error);
                Err(Error::Several(self))
            }
        }
    }
}

impl Error {
    /// The program's exit status: 3 if the daemon cannot be used, 1 if a file cannot.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Daemon(_) => 3,
            Self::Refused { source, .. } | Self::Transfer { source, .. } if source.is_fatal() => 3,
            Self::Several(failures) => match failures.first.as_slice() {
                // Only the last error can be one that ended the command.
                [.., last] => last.status(),
                [] => 1,
            },
            _ => 1,
        }
    }

    /// The errno of the daemon or the host that caused it.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } | Self::Transfer { source, .. } => source.errno(),
            Self::Host { source, .. } | Self::HostTransfer { source, .. } => {
                Errno::from_io_error(source)
            }
            _ => None,
        }
    }

    /// Whether no other file can succeed after this error.
    fn ends_the_command(&self) -> bool {
        match self {
            Self::Output(_) => true,
            Self::Several(failures) => failures.first.last().is_some_and(Self::ends_the_command),
            error => error.status() == 3,
        }
    }
}
