//! Serves the confined share to every guest that connects.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use thiserror::Error;

use crate::config::Config;
use crate::device::request::Handler;
use crate::device::server::{self, StopWhen};
use crate::passthrough::{Abilities, PassthroughFs, Share, ShareError};
use crate::sandbox::Confined;
use crate::session::Session;
use crate::session::handler::SessionHandler;

/// Why serving ended.
#[derive(Debug, Error)]
pub enum Error {
    /// The directory cannot be shared.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The daemon cannot wait for connections.
    #[error(transparent)]
    Server(#[from] server::Error),
}

/// Serves every guest that connects with a file system of its own on the share, until `stop` is
/// readable or, with `exit_on_disconnect`, the last guest leaves.
///
/// # Errors
/// [`enum@Error`].
pub fn serve(
    listener: &UnixListener,
    confined: Confined,
    config: &Config,
    stop: impl AsFd,
) -> Result<(), Error> {
    let abilities = Abilities {
        can_change_credentials: confined.can_change_credentials,
        can_open_by_handle: confined.can_open_by_handle,
    };
    let options = config.passthrough.clone();
    let share = Share::new(confined.root, confined.proc_self_fd, options, abilities)?;
    let new_handler = || -> Arc<dyn Handler> {
        let file_system = PassthroughFs::new(Arc::clone(&share));
        Arc::new(SessionHandler::new(Session::new(file_system)))
    };
    let stop_when = StopWhen {
        stop: stop.as_fd(),
        last_guest_leaves: config.exit_on_disconnect,
    };
    Ok(server::serve(
        listener,
        &config.device,
        new_handler,
        stop_when,
    )?)
}
