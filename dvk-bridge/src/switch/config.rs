//! What a switch is told before it starts, and why it does not start.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::geteuid;

use super::admission::Admission;
use crate::abi::{DcId, DcLimits};
use crate::status::StatusError;

/// What a switch is told before it starts.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// Where programs connect.
    pub socket: PathBuf,
    /// Permission bits of the socket.
    pub mode: u32,
    /// Who may bind what.
    pub admission: Admission,
    /// The containers, and their dimensions.
    pub dcs: HashMap<DcId, DcLimits>,
    /// Where its status is told.
    pub status: Option<PathBuf>,
    /// How long a program may take to read some when very much waits for it.
    pub read_timeout: Duration,
}

impl SwitchConfig {
    /// A switch at `socket` for the programs of this process's user alone, with container 0 of the usual dimensions.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            mode: 0o600,
            admission: Admission::only(geteuid().as_raw()),
            dcs: HashMap::from([(DcId::FIRST, DcLimits::USUAL)]),
            status: None,
            read_timeout: Duration::from_secs(2),
        }
    }
}

/// Why a switch does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The socket cannot be had.
    #[error("cannot listen at {}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another switch is there.
    #[error("there is a switch at {} already", .0.display())]
    Used(PathBuf),
    /// There is nowhere to tell the status.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The system does not let it wait.
    #[error("cannot wait for programs")]
    Wait(#[source] io::Error),
}
