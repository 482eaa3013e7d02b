//! Why a daemon cannot be used, or does not carry out a request.

use std::io;
use std::path::PathBuf;

use gangplank_vhost_user::message::MessageError;

/// Why a daemon cannot be used, or does not carry out a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// No process takes connections at the socket.
    #[error("cannot connect to a daemon at {}", daemon.display())]
    Connect {
        daemon: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The request could not be sent, or its reply not be received.
    #[error("{message} to the daemon at {} failed", daemon.display())]
    Wire {
        message: &'static str,
        daemon: PathBuf,
        #[source]
        source: MessageError,
    },
    /// The daemon replied that it failed.
    #[error("the daemon at {} refused {message}", daemon.display())]
    Refused {
        message: &'static str,
        daemon: PathBuf,
    },
    /// The daemon sent another message, or a reply that makes no sense.
    #[error("the daemon at {} sent something else than the reply to {message}", daemon.display())]
    WrongReply {
        message: &'static str,
        daemon: PathBuf,
    },
    /// The daemon does not offer a feature that the guest's device needs.
    #[error("the daemon at {} does not offer {what}", daemon.display())]
    Lacks { what: String, daemon: PathBuf },
    /// The daemon's state could not be read or written.
    #[error("cannot transfer the state of the daemon at {}", daemon.display())]
    State {
        daemon: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl DaemonError {
    /// Whether the daemon has closed the connection. After any other error it may go on with what
    /// it has.
    pub(crate) const fn is_end(&self) -> bool {
        matches!(self, Self::Wire { source, .. } if source.is_end())
    }
}
