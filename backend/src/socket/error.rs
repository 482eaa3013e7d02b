//! Why there is no socket to serve.

use std::io;
use std::path::PathBuf;

use gangplank_service::group;
use gangplank_service::unix_listener::BindError;
use thiserror::Error;

/// There is no socket to serve.
#[derive(Debug, Error)]
pub enum Error {
    /// The socket cannot be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The file that locks the socket's name.
    #[error("cannot {what} pid file {path:?}")]
    PidFile {
        /// What was being done.
        what: &'static str,
        /// The pid file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The files of the program before are out of reach.
    #[error("cannot keep the socket's files")]
    Inherit(#[source] io::Error),
    /// Another daemon has the lock.
    #[error(
        "socket {path:?} is in use: {owner} has locked its pid file; stop it or pass another \
         --socket-path"
    )]
    Locked {
        /// The socket.
        path: PathBuf,
        /// Who, in words.
        owner: String,
    },
    /// The group that may connect is not known.
    #[error("--socket-group")]
    Group(#[from] group::Error),
    /// `--fd` is not open.
    #[error("--fd: descriptor {fd} cannot be used")]
    Descriptor {
        /// Its number.
        fd: i32,
        /// Why.
        source: io::Error,
    },
    /// `--fd` is open but something else.
    #[error("--fd: descriptor {fd} is {what}; expected a listening Unix stream socket")]
    WrongDescriptor {
        /// Its number.
        fd: i32,
        /// What it is.
        what: &'static str,
    },
}
