//! Why a daemon cannot be used.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::connection::CallError;

/// Results of the vhost-user client.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the daemon cannot be reached, or did not carry out a request.
///
/// After any error but [`Error::Refused`], [`Error::Lacks`] and [`Error::Misuse`] the connection is
/// lost.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process listens at the socket.
    #[error("cannot connect to a daemon at {}", daemon.display())]
    Connect {
        /// The socket's path.
        daemon: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The process that listens at the socket did not accept the connection in time.
    #[error("the daemon at {} did not accept the connection within {limit:?}", daemon.display())]
    LateConnect {
        /// The socket's path.
        daemon: PathBuf,
        /// The time that was granted.
        limit: Duration,
    },
    /// The daemon did not answer in time.
    #[error("the daemon at {} did not answer {message} within {limit:?}", daemon.display())]
    Late {
        /// The message's name.
        message: &'static str,
        /// The socket's path.
        daemon: PathBuf,
        /// The time that was granted.
        limit: Duration,
    },
    /// The daemon has closed the connection.
    #[error("the daemon at {} closed the connection at {message}", daemon.display())]
    Gone {
        /// The message's name.
        message: &'static str,
        /// The socket's path.
        daemon: PathBuf,
    },
    /// The daemon answered that it failed.
    #[error("the daemon at {} refused {message}", daemon.display())]
    Refused {
        /// The message's name.
        message: &'static str,
        /// The socket's path.
        daemon: PathBuf,
    },
    /// The message could not be sent, or the daemon sent something else than its reply.
    #[error("{message} to the daemon at {} failed", daemon.display())]
    Protocol {
        /// The message's name.
        message: &'static str,
        /// The socket's path.
        daemon: PathBuf,
        /// What went wrong on the socket.
        #[source]
        source: CallError,
    },
    /// The daemon does not offer what is needed.
    #[error("the daemon at {} does not offer {what}", daemon.display())]
    Lacks {
        /// The feature, by its name.
        what: String,
        /// The socket's path.
        daemon: PathBuf,
    },
    /// The caller asked for a message out of order, or for a ring that does not exist.
    #[error("{0}")]
    Misuse(&'static str),
    /// The host refuses a resource.
    #[error("{what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the daemon may be there at another time: no process listens yet, or the
    /// connection was lost.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::LateConnect { .. } | Self::Late { .. } | Self::Gone { .. }
        )
    }
}
