//! What confines a process: each mechanism in a module, without a policy. The program decides what
//! it keeps, and in which order it gives up the rest.
//!
//! - [`capabilities`]: what the process may do as root.
//! - [`landlock`]: which files it reaches.
//! - [`seccomp`]: which system calls it makes.
//!
//! Capabilities and Landlock hold for the calling thread and those that it starts later, so a
//! program calls these functions before it starts threads.

pub mod capabilities;
mod error;
pub mod landlock;
pub mod seccomp;

pub use caps::{Capability, CapsHashSet};
pub use error::Error;

use landlock::Files;
use seccomp::{CallList, Seccomp};

/// What a program keeps that serves in one process.
#[derive(Debug)]
pub struct Kept<'a> {
    /// The capabilities, as far as it has them.
    pub capabilities: &'a [Capability],
    /// The files; all if `None`.
    pub files: Option<Files>,
    /// The system calls.
    pub calls: &'a CallList,
}

/// Confines the process to `kept`. `seccomp` is the action on a call that is not on the list.
///
/// The process must have one thread, and have opened what it does not keep.
///
/// # Errors
/// The first mechanism that fails. None is skipped silently.
pub fn confine(seccomp: Seccomp, kept: Kept<'_>) -> Result<(), Error> {
    capabilities::reduce_to_permitted(kept.capabilities)?;
    set_no_new_privs()?;
    if let Some(files) = &kept.files {
        landlock::restrict_to(files)?;
    }
    seccomp::install(seccomp, kept.calls)
}

/// Keeps every program that the process executes from gaining privileges by set-user-ID bits or
/// file capabilities (`PR_SET_NO_NEW_PRIVS`, prctl(2)). It cannot be undone.
///
/// # Errors
/// [`Error::NoNewPrivileges`].
pub fn set_no_new_privs() -> Result<(), Error> {
    rustix::thread::set_no_new_privs(true).map_err(|error| Error::NoNewPrivileges(error.into()))
}
