//! The errors of a configuration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gangplank_service::first_few::first_few;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The files have errors. The text has a line for each of the first ones.
    #[error("{}", first_few(faults))]
    Faults {
        /// At least one.
        faults: Vec<Fault>,
    },
}

/// A line of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Location {
    /// The file, as it was named in the configuration or on the command line.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// One error in a configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The location, or the start of the block that lacks something.
    pub at: Location,
    /// The word in question, as written.
    pub token: String,
    /// What is wrong, and what is expected.
    pub what: String,
}

impl Fault {
    pub(super) fn new(at: &Location, token: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            at: at.clone(),
            token: token.into(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.at)?;
        if !self.token.is_empty() {
            write!(f, "{}: ", self.token)?;
        }
        f.write_str(&self.what)
    }
}
