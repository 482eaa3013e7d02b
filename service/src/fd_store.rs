//! The service manager's store of descriptors, which outlives the program (`sd_notify(3)`,
//! `FileDescriptorStoreMax=` of `systemd.service(5)`).

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use sd_notify::NotifyState;

/// How many descriptors the service manager holds. `None` if it holds none.
#[must_use]
pub fn capacity() -> Option<usize> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let capacity = std::env::var("FDSTORE").ok()?.parse().ok()?;
    (capacity > 0).then_some(capacity)
}

/// Has the service manager hold a duplicate of a descriptor until it is removed by this name, also
/// if its other end hangs up. A name has up to 255 characters and no colon.
///
/// The service manager refuses a second duplicate of the same open file, by whatever name.
///
/// # Errors
/// The service manager does not listen.
pub fn store(name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let state = [
        NotifyState::FdStore,
        NotifyState::FdName(name),
        NotifyState::Custom("FDPOLL=0"),
    ];
    sd_notify::notify_with_fds(&state, &[descriptor])
}

/// Has the service manager close what it holds by this name.
///
/// # Errors
/// The service manager does not listen.
pub fn remove(name: &str) -> io::Result<()> {
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
}

/// The numbers and names of the descriptors that the program was started with.
///
/// # Errors
/// The environment does not fit them.
pub fn inherited() -> io::Result<Vec<(RawFd, String)>> {
    Ok(sd_notify::listen_fds_with_names()?.collect())
}
