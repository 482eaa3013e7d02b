//! What can go wrong between this end and a daemon.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Results of the vhost-user client.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the daemon could not be had, or did not do what it was told.
///
/// After anything but [`Error::Refused`], [`Error::Lacks`] and [`Error::Misuse`] the connection is lost.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody takes connections at the socket.
    #[error("cannot connect to a daemon at {}", daemon.display())]
    Connect {
        /// The socket's path.
        daemon: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The socket's owner took no connection in time.
    #[error("the daemon at {} took no connection within {limit:?}", daemon.display())]
    LateConnect {
        /// The socket's path.
        daemon: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The daemon did not answer in time.
    #[error("the daemon at {} did not answer {message} within {limit:?}", daemon.display())]
    Late {
        /// The message's name.
        message: &'static str,
        /// The socket's path.
        daemon: PathBuf,
        /// How long was waited.
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
    /// The message could not be sent or its answer was none.
    #[error("{message} to the daemon at {} failed", daemon.display())]
    Protocol {
        /// The message's name.
        message: &'static str,
        /// The socket's path.
        daemon: PathBuf,
        /// What the carrier says.
        #[source]
        source: vhost::Error,
    },
    /// The daemon does not offer what is needed.
    #[error("the daemon at {} does not offer {what}", daemon.display())]
    Lacks {
        /// The feature, by its name.
        what: String,
        /// The socket's path.
        daemon: PathBuf,
    },
    /// A message was asked for out of order.
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
    /// Whether the daemon may be there at another time: nobody listens yet, or the connection was lost.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::LateConnect { .. } | Self::Late { .. } | Self::Gone { .. }
        )
    }
}
