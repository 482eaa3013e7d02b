//! `gangplank-dvk serve` on 32-bit machines: it only says what to use instead.

use std::ffi::OsString;

use gangplank_sandbox::seccomp::Seccomp;

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
        "a 32-bit gangplank-dvk cannot serve a share: run the 64-bit one on a 64-bit machine, and \
         `gangplank-dvk forward` here to forward the requests of this machine's DVK to it"
    )]
    Narrow,
}

impl ServeError {
    /// The exit status.
    #[must_use]
    pub const fn status(&self) -> u8 {
        1
    }
}

/// Fails, because there is no server on 32-bit machines.
///
/// # Errors
///
/// [`ServeError::Narrow`], always.
pub fn run(_: &ServeArgs, _: Seccomp) -> Result<(), ServeError> {
    Err(ServeError::Narrow)
}
