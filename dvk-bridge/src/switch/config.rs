//! A switch's configuration, and why a switch does not start.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use gangplank_service::unix_listener::BindError;
use rustix::process::geteuid;

use super::bind_permissions::Admission;
use crate::abi::{DcId, DcLimits};
use crate::status::StatusError;

/// A switch's configuration.
#[derive(Clone, Debug)]
pub struct SwitchConfig {
    /// The socket to listen at.
    pub socket: PathBuf,
    /// Permission bits of the socket.
    pub mode: u32,
    /// The users and their endpoints.
    pub admission: Admission,
    /// The containers and their dimensions.
    pub dcs: HashMap<DcId, DcLimits>,
    /// The status socket.
    pub status: Option<PathBuf>,
    /// Time in which a program with a full queue must read some of it.
    pub read_timeout: Duration,
}

impl SwitchConfig {
    /// A switch at `socket` for the programs of the own user, with container 0 of the usual
    /// dimensions.
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

/// Why a switch does not start, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// The socket cannot be created.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The status socket cannot be created.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The switch cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// The system refuses to wait for events.
    #[error("cannot wait for programs")]
    Wait(#[source] io::Error),
}
