//! What a client of the control socket asks a daemon of several shares, and what it is told: a line
//! of JSON each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::share::Share;

/// What the line begins with. JSON follows.
pub const PREFIX: &str = "share 1 ";

/// Most bytes of a request. A share has some lines of options.
pub const MAX_REQUEST: usize = 256 * 1024;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Another share.
    Add(Share),
    /// One share less.
    Remove {
        /// Which one.
        tag: String,
        /// Also with guests.
        force: bool,
    },
    /// All shares.
    List,
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Done,
    /// It is not done, and why.
    Error(String),
    /// All shares.
    Shares(Vec<Listed>),
}

/// A share in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its tag.
    pub tag: String,
    /// The shared directory.
    pub shared_dir: PathBuf,
    /// The socket's path; `None` if the service manager has passed it.
    pub socket: Option<PathBuf>,
    /// `starting`, `serving`, `ending`, `restarting` or `failed`.
    pub state: String,
    /// Why it has failed.
    pub reason: Option<String>,
    /// Guests that are connected; `None` if that is not known now.
    pub guests: Option<u64>,
    /// Where the share was written: `--share`, a file's path, or `share add`.
    pub origin: String,
    /// The first process of the share.
    pub process: Option<u32>,
    /// The control socket of that process.
    #[serde(skip)]
    pub control: PathBuf,
}
