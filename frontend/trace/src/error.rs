//! Why a trace cannot be shown, or not as a whole.

use std::io;
use std::path::PathBuf;

use gangplank_trace::ReadError;

/// Why a trace cannot be shown, or not as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open {path:?}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It cannot be read, or is no trace.
    #[error("{path:?} cannot be shown")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ReadError,
    },
    /// Some records are damaged. All others were shown.
    #[error("{path:?} is damaged in {count} places; all other records were shown")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The places.
        count: u64,
    },
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// The standard output.
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}
