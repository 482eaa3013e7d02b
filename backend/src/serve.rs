//! Serving the confined share to whoever connects.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags, poll};
use thiserror::Error;

use crate::config::Config;
use crate::sandbox::Confined;

/// Why serving ended.
#[derive(Debug, Error)]
pub enum Error {
    /// Waiting failed.
    #[error("cannot wait for guests")]
    Wait(#[source] io::Error),
}

/// Accepts and closes connections until `stop` is readable.
///
/// # Errors
/// [`Error`] where connections cannot be waited for.
pub fn serve(
    listener: UnixListener,
    _share: Confined,
    _config: &Config,
    stop: impl AsFd,
) -> Result<(), Error> {
    loop {
        let mut fds = [
            PollFd::new(&listener, PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        poll(&mut fds, None).map_err(|error| Error::Wait(error.into()))?;
        if fds.iter().skip(1).any(|fd| !fd.revents().is_empty()) {
            return Ok(());
        }
        drop(listener.accept());
    }
}
