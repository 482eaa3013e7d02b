//! `gangplank-dvk serve` on 32-bit machines: it only says what to use instead.

use std::ffi::OsString;

/// `serve`: serves a share to DVS machines.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// Any arguments, which are ignored
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub rest: Vec<OsString>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The virtio-fs driver needs a 64-bit machine to map memory.
    #[error(
        "a share is served by the 64-bit gangplank-dvk, on another machine where this one is of 32 bits; \
         `gangplank-dvk forward` passes on to it what the processes of this machine's DVK ask"
    )]
    Narrow,
}

/// Fails, because there is no server on 32-bit machines.
///
/// # Errors
///
/// [`ServeError::Narrow`], always.
pub fn run(_: &ServeArgs) -> Result<(), ServeError> {
    Err(ServeError::Narrow)
}
