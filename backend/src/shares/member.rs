//! The process of one share of several, towards the process that has started it.

use std::env;
use std::io;

use gangplank_service::readiness;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// The variable by which a share's process learns the process id of the one that has started it.
pub const VARIABLE: &str = "GANGPLANKD_SHARES";

/// Whether this process serves one share of several.
#[must_use]
pub fn is_member() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// Tells the process that has started this one why it ends. Its acceptor tells nothing.
pub fn tell_failure(reason: &str) {
    let parent = env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
    if parent.is_some_and(|parent: i32| parent == Pid::as_raw(getppid())) {
        readiness::failed(reason);
    }
}

/// Has the kernel send this process SIGTERM when the one ends that has started it. It stays so when
/// the process becomes another program at a reload.
///
/// # Errors
/// That process has ended, or the variable is malformed.
pub fn end_with_the_daemon() -> io::Result<()> {
    let Some(text) = env::var_os(VARIABLE) else {
        return Ok(());
    };
    let parent = text.to_str().and_then(|text| text.parse().ok());
    let parent = parent.and_then(Pid::from_raw);
    let parent = parent.ok_or_else(|| {
        let text = format!("{VARIABLE} is malformed");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    set_parent_process_death_signal(Some(Signal::TERM))?;
    match getppid() == Some(parent) {
        true => Ok(()),
        false => Err(io::Error::other("the process of all shares has ended")),
    }
}
