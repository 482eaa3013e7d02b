//! Why a dump ends.

use std::io;
use std::net::SocketAddr;

use crate::abi::{Generation, HeaderError};

/// Why nothing more can be shown.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The capture cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// Which.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The capture is of a kind that is not understood.
    #[error("cannot read {what} as packets: {why}")]
    Capture {
        /// Which.
        what: String,
        /// Why not.
        why: String,
    },
    /// Nobody can connect.
    #[error("cannot listen at {listen}")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is read is no command.
    #[error("byte {at}: no command of the {generation} generation")]
    NoCommand {
        /// Where in what was read.
        at: u64,
        /// As which it was read.
        generation: Generation,
        /// Why not.
        #[source]
        source: HeaderError,
    },
    /// The layout cannot be found out.
    #[error("the layout cannot be found out: say it with --generation")]
    Layout,
    /// The lines cannot be written.
    #[error("cannot write")]
    Write(#[source] io::Error),
}
