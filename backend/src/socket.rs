//! The socket guests connect to.

use std::path::PathBuf;

/// Where the listening socket comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Made here.
    Path {
        /// The socket's file.
        path: PathBuf,
        /// Group that may connect beside the owner.
        group: Option<String>,
    },
    /// Inherited, already listening, by descriptor number.
    Fd(i32),
}
