//! Where descriptors are held: by the relay that `--holder` names, or by the service manager.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use gangplank_service::fd_store::holder::Client;
use gangplank_service::fd_store::{self, FdStore};
use thiserror::Error;

use super::comeback::Found;
use crate::config::Config;
use crate::socket::Source;

/// The holder cannot be used.
#[derive(Debug, Error)]
#[error("--holder: cannot have descriptors held by the relay at {}", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// The store, and what it has: `inherited` if that is the service manager's.
///
/// # Errors
/// [`struct@Error`]; without a holder, guests would not outlive the daemon, as the option wants.
pub fn open(config: &Config, inherited: Found) -> Result<(FdStore, Found), Error> {
    let Some(path) = &config.holder else {
        return Ok((FdStore::of_service_manager(), inherited));
    };
    let (client, found) = connect(config, path).map_err(|source| Error {
        path: path.clone(),
        source,
    })?;
    Ok((FdStore::of_holder(client), Found::passed(found)))
}

fn connect(config: &Config, path: &Path) -> io::Result<(Client, fd_store::holder::Found)> {
    Client::connect(&std::path::absolute(path)?, owner(config)?)
}

/// The store that another program of this process has used, by its connection if it has one.
pub fn resume(config: &Config, connection: Option<OwnedFd>) -> FdStore {
    let Some(path) = &config.holder else {
        return FdStore::of_service_manager();
    };
    // Both were found when the daemon was started.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let owner = owner(config).unwrap_or_default();
    FdStore::of_holder(Client::resumed(&path, owner, connection))
}

/// Whether there is a store.
pub fn is_there(config: &Config) -> bool {
    config.holder.is_some() || fd_store::capacity().is_some()
}

/// Which daemon this is, for a holder of several: its socket and its directory.
fn owner(config: &Config) -> io::Result<Vec<u8>> {
    let socket = match &config.socket {
        Source::Path { path, .. } => std::path::absolute(path)?,
        Source::Fd(_) => PathBuf::new(),
    };
    let directory = std::fs::canonicalize(&config.shared_dir)?;
    let mut owner = socket.as_os_str().as_bytes().to_vec();
    owner.push(b'\n');
    owner.extend(directory.as_os_str().as_bytes());
    Ok(owner)
}
