//! The operator's choices that calls depend on.

use super::credentials::Credentials;
use super::resolver::SymlinkPolicy;

/// The operator's choices that calls depend on.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) credentials: Credentials,
    pub(super) symlinks: SymlinkPolicy,
    pub(super) read_only: bool,
    /// Limit of a client's open files.
    pub(super) handles: usize,
    /// Limit of a client's files that are open at the daemon.
    pub(super) open: usize,
    /// The root's path as the client is told.
    pub(super) root_name: String,
}
