//! Ending as other programs end whose reader has gone.
#![allow(unsafe_code)] // signal(2), which no safe wrapper resets to its default

use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal, raise, signal};

/// Ends this process by SIGPIPE, as a write to a closed pipe ends a program that has left the
/// signal as it is; the Rust runtime has it ignored. The status is for the case that the signal
/// is blocked: a shell shows the same.
#[must_use]
pub fn end() -> ExitCode {
    // SAFETY: the default action runs no code of this process.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let _ = raise(Signal::SIGPIPE);
    ExitCode::from(128 + 13)
}
