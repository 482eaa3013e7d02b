//! What is wrong with a configuration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The files cannot be meant so: a line for each fault.
    #[error("{}", lines(faults))]
    Faults {
        /// At least one.
        faults: Vec<Fault>,
    },
}

/// A place in a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Location {
    /// The file, as it was named.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// One thing that is wrong in a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Where it is, or where the block begins that lacks something.
    pub at: Location,
    /// The word to blame, as written.
    pub token: String,
    /// What is wrong, and what would be right.
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

fn lines(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    lines.join("\n")
}
