//! `gangplank-dvk serve` on machines of 32 bits: there is none, and what there is instead.

use std::ffi::OsString;

/// `serve`: a share for DVS machines.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// Whatever is typed: nothing of it is looked at
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub rest: Vec<OsString>,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The virtio-fs driver maps memory as only machines of 64 bits can.
    #[error(
        "a share is served by the 64-bit gangplank-dvk, on another machine where this one is of 32 bits; \
         `gangplank-dvk forward` passes on to it what the processes of this machine's DVK ask"
    )]
    Narrow,
}

/// Says that there is no server here.
///
/// # Errors
/// [`ServeError::Narrow`], always.
pub fn run(_: &ServeArgs) -> Result<(), ServeError> {
    Err(ServeError::Narrow)
}
