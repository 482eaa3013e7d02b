//! Ends the process the way other programs end when the reader of their output is gone.
#![allow(unsafe_code)] // signal(2), which no safe wrapper resets to its default

use std::process::ExitCode;

use nix::sys::signal::{SigHandler, Signal, raise, signal};

/// Ends this process by SIGPIPE, as a write to a closed pipe ends a program that has not changed
/// the signal's action. The Rust runtime ignores the signal. If the signal is blocked, the status
/// is the one that a shell shows for it.
#[must_use]
pub fn end() -> ExitCode {
    // SAFETY: the default action runs no code of this process.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let _ = raise(Signal::SIGPIPE);
    ExitCode::from(128 + 13)
}
