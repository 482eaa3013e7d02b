//! Errors of a configuration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use gangplank_service::first_few::first_few;

/// Why a file is not a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file has faults: a line for each of the first ones.
    #[error("{}", lines(file, faults))]
    Faults {
        /// The file.
        file: PathBuf,
        /// At least one.
        faults: Vec<Fault>,
    },
}

/// One fault of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The line, from 1; 0 if the fault is in no line.
    pub line: u64,
    /// The key, if the fault is in one.
    pub key: Option<String>,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl Fault {
    pub(super) fn new(line: u64, key: &str, what: impl Into<String>) -> Self {
        Self {
            line,
            key: Some(key.to_owned()),
            what: what.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}: ", self.line)?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.what)
    }
}

fn lines(file: &Path, faults: &[Fault]) -> String {
    first_few(faults.iter().map(|fault| match fault.line {
        0 => format!("{}: {fault}", file.display()),
        _ => format!("{}:{fault}", file.display()),
    }))
}
