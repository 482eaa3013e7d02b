//! Why a socket cannot be made.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::LOCK_TIMEOUT;

/// Why [`OwnedListener::bind`](super::OwnedListener::bind) has made no socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// The path has no last component.
    #[error("socket path {0:?} names no file")]
    NoFileName(PathBuf),
    /// The directory that is to hold the socket cannot be used.
    #[error("cannot {what} directory {directory:?}, where the socket is to be")]
    Directory {
        /// What was being done.
        what: &'static str,
        /// The directory.
        directory: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another process keeps the directory locked, so that a socket that no process uses cannot be
    /// replaced.
    #[error(
        "a process has kept directory {0:?} locked for {seconds} s, so the unused socket there \
         cannot be replaced: end that process or choose another directory",
        seconds = LOCK_TIMEOUT.as_secs()
    )]
    Locked(PathBuf),
    /// The directory is no longer where it was when it was opened.
    #[error("the directory of socket {0:?} was replaced while the socket was made: try again")]
    Moved(PathBuf),
    /// Another process listens at the path.
    #[error("socket {path:?} is in use: {owner} listens there; stop it or choose another path")]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The process, in words.
        owner: String,
    },
    /// A file that is no socket has the name.
    #[error("{path:?} exists and is {what}, not a socket: remove it or choose another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// The kind of file.
        what: &'static str,
    },
    /// A system call on the socket fails.
    #[error("cannot {what} socket {path:?}")]
    Socket {
        /// What was being done.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}
