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

/// Keeps every program that the process executes from gaining privileges by set-user-ID bits or
/// file capabilities (`PR_SET_NO_NEW_PRIVS`, prctl(2)). It cannot be undone.
///
/// # Errors
/// [`Error::NoNewPrivileges`].
pub fn set_no_new_privs() -> Result<(), Error> {
    rustix::thread::set_no_new_privs(true).map_err(|error| Error::NoNewPrivileges(error.into()))
}
