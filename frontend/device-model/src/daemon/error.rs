//! Why no device was served.

use std::io;
use std::path::PathBuf;

use gangplank_service::logging;
use gangplank_service::unix_listener::BindError;

use crate::config::ConfigError;
use crate::fd_store::FdStoreError;
use crate::hypervisor_driver::HypervisorError;

/// Why no device was served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The plan could not be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// Logging cannot be started.
    #[error(transparent)]
    Logging(#[from] logging::Error),
    /// The status socket cannot be made.
    #[error("cannot listen on {} for status requests", path.display())]
    Status {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: BindError,
    },
    /// No hypervisor's driver can be opened.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The program cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] gangplank_sandbox::Error),
    /// No process keeps the devices over a restart.
    #[error(transparent)]
    FdStore(#[from] FdStoreError),
    /// The host refused a resource.
    #[error("cannot wait for {what}")]
    System {
        /// What the program was to wait for.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The exit status: 2 if the command line or the configuration is wrong, 1 otherwise.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}
