//! The operator's choices that calls depend on.

use super::credentials::Credentials;
use super::resolver::SymlinkPolicy;

/// What the operator has chosen, as far as calls depend on it.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) credentials: Credentials,
    pub(super) symlinks: SymlinkPolicy,
    pub(super) read_only: bool,
    /// Open files of one client.
    pub(super) handles: usize,
    /// Those of them that the daemon has open at once.
    pub(super) open: usize,
    /// The root's path, as the client is told it.
    pub(super) root_name: String,
}
