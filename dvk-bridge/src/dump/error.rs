//! Why a dump ends.

use std::io;
use std::net::SocketAddr;

use crate::abi::{Generation, HeaderError};

/// Why a dump has ended.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The program cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// The capture cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// The file.
        what: String,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The capture has an unknown format.
    #[error("cannot read {what} as packets: {why}")]
    Capture {
        /// The file.
        what: String,
        /// The reason.
        why: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen at {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The bytes are not a command.
    #[error("byte {at} does not start a command of the {generation} generation")]
    NoCommand {
        /// The position in the input.
        at: u64,
        /// The generation by which they were read.
        generation: Generation,
        /// The reason.
        #[source]
        source: HeaderError,
    },
    /// The layout cannot be guessed.
    #[error("cannot detect the layout: give it with --generation")]
    Layout,
    /// The output cannot be written.
    #[error("cannot write")]
    Write(#[source] io::Error),
}
